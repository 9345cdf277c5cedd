#!/bin/sh
# Starts the server. Its arguments are flags of serve.py, which come last and so take precedence.
# The container has a network of its own: 0.0.0.0 is what the host can publish. Masks and autosaves
# go to masks/. The token is a new one at each start, printed with the page's address.
set -eu
cd "$(dirname "$0")"
set -- --host 0.0.0.0 --port 1527 --token --save-dir masks "$@"
. ./checkpoint.sh
exec python serve.py "$@"
