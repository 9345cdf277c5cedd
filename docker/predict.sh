#!/bin/sh
# Segments the cases in inputs/ and writes the masks to outputs/. The challenge runs it in
# /workspace: sh predict.sh
# The build runs "sh predict.sh --check", which opens the network and segments nothing.
set -eu
cd "$(dirname "$0")"
mode=${1:-}

teachers=0 others=0 names=
for file in weights/*; do
    if [ ! -f "$file" ] || [ "${file%.sha256}" != "$file" ]; then continue; fi
    names="$names $file"
    case "$file" in
        weights/teacher.pth | weights/teacher.pt) teachers=$((teachers + 1)) teacher=$file ;;
        *) others=$((others + 1)) checkpoint=$file ;;
    esac
done
# A teacher on its own is the network to run. Beside another checkpoint only its decoder is used.
if [ "$others $teachers" = "0 1" ]; then
    checkpoint=$teacher teachers=0 others=1
fi
if [ "$others" -ne 1 ] || [ "$teachers" -gt 1 ]; then
    echo "weights/: found $((others + teachers)) checkpoints (${names# }), expected one, and" \
        "perhaps a teacher.pth or teacher.pt beside it." >&2
    echo "Build the image with --build-context weights=FOLDER --build-arg CHECKPOINT=FILE." >&2
    exit 1
fi
set -- --checkpoint "$checkpoint"
if [ "$teachers" -eq 1 ]; then set -- "$@" --teacher "$teacher"; fi
if [ -n "${NETWORK:-}" ]; then set -- "$@" --network "$NETWORK"; fi

if [ "$mode" = --check ]; then exec python check_network.py "$@"; fi
# outputs/ is for answers alone: one that was changed since, or is of another version, is replaced.
exec python predict.py "$@" --input inputs --output outputs --overwrite --timing
