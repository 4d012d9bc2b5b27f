#!/usr/bin/env bash
# One leg of training mini, on all GPUs of a machine that is reached by short commands and given back after half an hour.
#
#   tools/gpu/leg.sh start DATA INIT MINUTES [options of `im3d train mini`]
#       starts it in a session of its own, from the weights in INIT (with training.json) and the packs in DATA
#   tools/gpu/leg.sh look SECONDS
#       waits so long, or until the leg has ended, and shows what it says
#   tools/gpu/leg.sh bring FOLDER
#       hands over the weights in pieces of 15 MB (cat weights.* > diffusion_pytorch_model.safetensors), config and log
#
# Two legs at once, each on a GPU: CUDA_VISIBLE_DEVICES=0 GPUS=1 LEG=/tmp/a …, and the other with its own.
#
# MINUTES count from the start, with the five that packs, orbits and grids take before the first step. The options of
# the last leg, and what came of it, are in docs/lab/training-log.md. Everything lies in ${LEG:-/tmp/im3d-leg}.
set -euo pipefail
leg=${LEG:-/tmp/im3d-leg}
root=$(cd "$(dirname "$0")/../.." && pwd)
running() { pgrep -f "im3d.cli train mini.* --out $leg/out" >/dev/null; }

case ${1:-} in
start)
    data=$2 init=$3 minutes=$4
    shift 4
    mkdir -p "$leg"
    # The code may be replaced on the machine while the leg runs.
    rm -rf "$leg/backend" && cp -r "$root/backend" "$leg/backend"
    export PYTHONPATH="$leg/backend${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    packs=()
    for pack in "$data"/*.npz.xz; do packs+=(--pack "$pack"); done
    gpus=${GPUS:-$(nvidia-smi -L | wc -l)} launcher=()
    if [ "$gpus" -gt 1 ]; then launcher=(-m torch.distributed.run --standalone --nproc-per-node="$gpus"); fi
    setsid nohup python3 "${launcher[@]}" -m im3d.cli train mini "${packs[@]}" --cache "$leg/cache" --out "$leg/out" \
        --init "$init" --workers "$(nproc)" --minutes "$minutes" --test "$@" >"$leg/log" 2>&1 </dev/null &
    for _ in $(seq 60); do sleep 1; running || break; done
    tail -5 "$leg/log"
    ;;
look)
    end=$((SECONDS + $2))
    while [ $SECONDS -lt $end ] && running; do sleep 2; done
    grep -v '"orbits_per_s"' "$leg/log" | tail -20
    grep '"orbits_per_s"' "$leg/log" | tail -3 || true
    running && echo 'still training' || echo 'ended'
    ;;
bring)
    mkdir -p "$2"
    split -b 15000000 "$leg/out/model/diffusion_pytorch_model.safetensors" "$2/weights."
    cp "$leg/out/model/config.json" "$leg/out/model/training.json" "$2/"
    gzip -c "$leg/out/log.jsonl" >"$2/log.jsonl.gz"
    sha256sum "$leg/out/model/diffusion_pytorch_model.safetensors"
    ;;
*)
    sed -n '2,17p' "$0"
    exit 2
    ;;
esac
