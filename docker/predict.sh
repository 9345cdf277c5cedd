#!/bin/sh
# Segments the cases in inputs/ and writes the masks to outputs/. The challenge runs it in
# /workspace: sh predict.sh
set -eu
cd "$(dirname "$0")"

teacher=weights/teacher.pth
set --
for file in weights/*.pth weights/*.pt; do
    if [ -f "$file" ] && [ "$file" != "$teacher" ]; then set -- "$@" "$file"; fi
done
if [ $# -ne 1 ]; then
    echo "weights/: found $# checkpoints ($*), expected one, and perhaps a teacher.pth beside it." >&2
    echo "Build the image with --build-arg CHECKPOINT=FILE." >&2
    exit 1
fi
# outputs/ is for answers alone: one that was changed since, or is of another version, is replaced.
set -- --checkpoint "$1" --input inputs --output outputs --overwrite --timing
if [ -f "$teacher" ]; then set -- "$@" --teacher "$teacher"; fi
if [ -n "${NETWORK:-}" ]; then set -- "$@" --network "$NETWORK"; fi

exec python predict.py "$@"
