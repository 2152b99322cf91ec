#!/usr/bin/env bash
# pack.sh TO WHEELS DATA: puts into the folder TO what an accelerator without a network needs:
# stage.py, this checkout's HEAD, the packages in WHEELS, and of the data sets in DATA (laid out as
# UNET_JAX_DATA) ISBI 2012 and the HeLa frames with a gold truth. TO holds real data: never commit it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(git -C "$here" rev-parse --show-toplevel)
rm -rf "$1" && mkdir -p "$1/wheels"
to=$(realpath "$1") wheels=$(realpath "$2") data=$(realpath "$3")

cp "$here/stage.py" "$to"
cp "$wheels"/*.whl "$to/wheels"
git -C "$project" rev-parse HEAD > "$to/commit"
git -C "$project" archive HEAD | gzip -9 > "$to/source.tar.gz"
# The project's own wheel is there for its metadata, without which it does not know its version.
source=$(mktemp -d)
tar xzf "$to/source.tar.gz" -C "$source"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$to/wheels" "$source"
rm -rf "$source"
cd "$data"
masks=(ctc/DIC-C2DH-HeLa/0?_GT/SEG/man_seg*.tif)
frames=("${masks[@]/_GT\/SEG\/man_seg//t}")
tar czf "$to/data.tar.gz" isbi2012/train-*.tif "${masks[@]}" "${frames[@]}"
du -sh "$to"
