#!/usr/bin/env bash
# Trains mini from nothing on a machine with one GPU, in two parts that fit into half an hour:
#   1. the volume alone, against the props' occupancy: thousands of orbits a second, no view is rendered;
#   2. everything, against the rendered views, on other random orbits of deformed and lit props.
#
#   tools/gpu/train_mini.sh DATA OUT VOLUME_MINUTES VIEWS_MINUTES
#
# DATA holds the packs (*.npz.xz). OUT gets volume/ and views/, each with log.jsonl, model/ and validation pictures.
# Further runs: im3d train mini … --init OUT/views/model. Rendered orbits stay in ${CACHE:-/tmp/im3d-cache}, those of
# the first part only while it lasts.
set -euo pipefail
data=$1 out=$2 volume=$3 views=$4
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD/backend${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
cache=${CACHE:-/tmp/im3d-cache}
common=(--cache "$cache" --workers "$(nproc)" --orbits "${ORBITS:-10}" --muon --compile --weight-decay 0.1)
for pack in "$data"/*.npz.xz; do common+=(--pack "$pack"); done

python3 -m im3d.cli train mini "${common[@]}" --out "$out/volume" --rendered-views 0 --batch "${VOLUME_BATCH:-512}" \
    --minutes "$volume" --learning-rate 2.5e-3 --decay 0.4 --validate-minutes 3 --model "${MODEL:-{\}}"
rm -f "$cache"/orbits-*
python3 -m im3d.cli train mini "${common[@]}" --out "$out/views" --init "$out/volume/model" --orbit-seed 1 \
    --rendered-views 3 --batch "${VIEWS_BATCH:-192}" --minutes "$views" --learning-rate 1e-3 --decay 0.5 \
    --volume-weight 5 --coarse-weight 4 --validate-minutes 3 --test
