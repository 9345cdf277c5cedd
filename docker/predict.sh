#!/bin/sh
# Answers the cases in inputs/ into outputs/, as the challenge calls it: sh predict.sh in /workspace.
set -eu
cd "$(dirname "$0")"

teacher=weights/teacher.pth
set --
for file in weights/*.pth weights/*.pt; do
    if [ -f "$file" ] && [ "$file" != "$teacher" ]; then set -- "$@" "$file"; fi
done
if [ $# -ne 1 ]; then
    echo "weights/: found $# checkpoints ($*), expected one and at most a teacher.pth beside it." >&2
    echo "Build the image with --build-arg CHECKPOINT=FILE." >&2
    exit 1
fi
set -- --checkpoint "$1" --input inputs --output outputs --timing
if [ -f "$teacher" ]; then set -- "$@" --teacher "$teacher"; fi
if [ -n "${NETWORK:-}" ]; then set -- "$@" --network "$NETWORK"; fi

exec python predict.py "$@"
