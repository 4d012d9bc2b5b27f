#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: the GPU tests, then whole jobs on it. Writes its log to stdout.
set -eu -o pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 -m pytest -q -m gpu -rs -p no:cacheprovider tests/backend/splats/test_splats_cuda.py
for preset in standard paper; do
  python3 -m im3d.cli generate --views examples/playhouse --out "/tmp/gpu-$preset" --preset "$preset" --device cuda --json |
    tail -1 | python3 -c 'import json, sys; r = json.load(sys.stdin); print({k: r.get(k) for k in ("status", "message", "device", "rasterizer", "perceptual", "timings_s", "mesh_stats", "peak_memory_mb")})'
done
