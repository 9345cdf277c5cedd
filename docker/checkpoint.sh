# Finds the checkpoint in weights/. Other scripts read this one in their place: . ./checkpoint.sh
# It sets their arguments to the flags of predict.py and serve.py that name it.
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
if [ -n "${NETWORK:-}" ]; then set -- --network "$NETWORK" "$@"; fi
if [ "$teachers" -eq 1 ]; then set -- --teacher "$teacher" "$@"; fi
set -- --checkpoint "$checkpoint" "$@"
echo "checkpoint: $checkpoint" >&2
