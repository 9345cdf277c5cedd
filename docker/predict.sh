#!/bin/sh
# Segments the cases in inputs/ and writes the masks to outputs/. The challenge runs it in
# /workspace: sh predict.sh
# The build runs "sh predict.sh --check", which opens the network and segments nothing.
set -eu
cd "$(dirname "$0")"
mode=${1:-}
set --
. ./checkpoint.sh

if [ "$mode" = --check ]; then exec python check_network.py "$@"; fi
# outputs/ is for answers alone: one that was changed since, or is of another version, is replaced.
exec python predict.py "$@" --input inputs --output outputs --overwrite --timing
