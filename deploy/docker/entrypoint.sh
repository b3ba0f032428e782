#!/bin/sh
# What was compiled with the image is put where Numba may write beside it, and the command takes the place of this one.
set -e
compiled=${NEUROSHED_COMPILED:-/opt/neuroshed/numba}
export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-${TMPDIR:-/tmp}/numba}"
if [ -d "$compiled" ] && [ ! -e "$NUMBA_CACHE_DIR" ]; then
    cp -r "$compiled" "$NUMBA_CACHE_DIR"
fi
exec "$@"
