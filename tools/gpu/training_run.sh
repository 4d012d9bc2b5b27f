#!/usr/bin/env bash
# One training run of mini, on all GPUs of a machine that is reached by short commands and given back after half an hour.
#
#   tools/gpu/training_run.sh start DATA INIT MINUTES [options of `im3d train mini`]
#       starts it in a session of its own, from the weights in INIT (with training.json) and the packs in DATA
#   tools/gpu/training_run.sh watch SECONDS
#       waits so long, or until the run has ended, and shows its log
#   tools/gpu/training_run.sh fetch FOLDER
#       writes the weights in pieces of 15 MB (cat weights.* > diffusion_pytorch_model.safetensors), config and log
#
# Two runs at once, each on a GPU: CUDA_VISIBLE_DEVICES=0 GPUS=1 RUN=/tmp/a …, and the other with its own.
#
# MINUTES count from the start, with the five that packs, orbits and grids take before the first step. The options of
# the last run, and its result, are in docs/lab/training-log.md. Everything lies in ${RUN:-/tmp/im3d-run}.
set -euo pipefail
run=${RUN:-/tmp/im3d-run}
root=$(cd "$(dirname "$0")/../.." && pwd)
running() { pgrep -f "im3d.cli train mini.* --out $run/out" >/dev/null; }

case ${1:-} in
start)
    data=$2 init=$3 minutes=$4
    shift 4
    mkdir -p "$run"
    # The code may be replaced on the machine during the run.
    rm -rf "$run/backend" && cp -r "$root/backend" "$run/backend"
    export PYTHONPATH="$run/backend${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    packs=()
    for pack in "$data"/*.npz.xz; do packs+=(--pack "$pack"); done
    gpus=${GPUS:-$(nvidia-smi -L | wc -l)} launcher=()
    if [ "$gpus" -gt 1 ]; then launcher=(-m torch.distributed.run --standalone --nproc-per-node="$gpus"); fi
    setsid nohup python3 "${launcher[@]}" -m im3d.cli train mini "${packs[@]}" --cache "$run/cache" --out "$run/out" \
        --init "$init" --workers "$(nproc)" --minutes "$minutes" --test "$@" >"$run/log" 2>&1 </dev/null &
    for _ in $(seq 60); do sleep 1; running || break; done
    tail -5 "$run/log"
    ;;
watch)
    end=$((SECONDS + $2))
    while [ $SECONDS -lt $end ] && running; do sleep 2; done
    grep -v '"orbits_per_s"' "$run/log" | tail -20
    grep '"orbits_per_s"' "$run/log" | tail -3 || true
    running && echo 'still training' || echo 'ended'
    ;;
fetch)
    mkdir -p "$2"
    split -b 15000000 "$run/out/model/diffusion_pytorch_model.safetensors" "$2/weights."
    cp "$run/out/model/config.json" "$run/out/model/training.json" "$2/"
    gzip -c "$run/out/log.jsonl" >"$2/log.jsonl.gz"
    sha256sum "$run/out/model/diffusion_pytorch_model.safetensors"
    ;;
*)
    sed -n '2,17p' "$0"
    exit 2
    ;;
esac
