"""Generation by `mini`: one evaluation of its network, and an orbit. Stable Video 3D has tools/gpu/bench_sv3d.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from im3d.errors import ModelError
from im3d.generators.mini.generator import DEFAULT_STEPS, mini_weights, sample_orbit
from im3d.generators.mini.layers import channels_last
from im3d.generators.mini.model import VolumeDenoiser
from im3d_lab.bench.measure import Bench


def bench_sample(bench: Bench, size: int) -> dict[str, Any]:
    """Measures mini's network; with random weights where none are installed, which cost the same.

    Args:
        bench: Takes the rows.
        size: Side of the views in pixels for random weights.

    Returns:
        Which weights, and the steps of an orbit.
    """
    model, weights = _network(size)
    channels_last(model.to(bench.device)).eval()
    size, views = model.config["sample_size"], model.config["views"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, views, 4, size, size, generator=generator).to(bench.device)
    picture = torch.rand(1, 4, size, size, generator=generator).to(bench.device)
    sigma = torch.full((1,), 5.0, device=bench.device)

    @torch.inference_mode()
    def evaluate() -> None:
        model(x, sigma, picture)

    with FlopCounterMode(display=False) as counter:
        evaluate()
    bench.measure("network", evaluate, operations=counter.get_total_flops())
    bench.measure(
        f"orbit, {DEFAULT_STEPS} steps", lambda: sample_orbit(model, picture, DEFAULT_STEPS, generator), repeats=1
    )
    return {"weights": weights, "views": views, "size": size, "steps": DEFAULT_STEPS}


def _network(size: int) -> tuple[VolumeDenoiser, str]:
    try:
        folder: Path = mini_weights()
    except ModelError:
        torch.manual_seed(0)
        return VolumeDenoiser(sample_size=size), "random"
    return VolumeDenoiser.from_pretrained(folder, torch_dtype=torch.float32), str(folder)
