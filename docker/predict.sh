#!/bin/sh
# Answers the cases in inputs/ into outputs/, as the challenge calls it: sh predict.sh in /workspace.
# Root only looks whom outputs/ belongs to: the network runs as that user, or as nobody where the
# folder is root's and open to all. Root itself goes on only where no one else could read and write.
# `docker run --user` is taken as it is.
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

as=""
if [ "$(id -u)" = 0 ]; then
    for user in "$(stat -c %u:%g outputs)" 65534:65534; do
        try="setpriv --reuid=${user%:*} --regid=${user#*:} --clear-groups"
        if [ "${user%:*}" != 0 ] && $try test -w outputs -a -x outputs 2>/dev/null \
            && [ -z "$($try find inputs weights ! -readable 2>&1)" ]; then
            as=$try
            break
        fi
    done
fi
exec $as python predict.py "$@"
