"""Weights of `mini` for a volume of more depths: the side views see a cell of depth as several pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from im3d.errors import InputError
from im3d.generators.mini.model import VolumeDenoiser


def with_depths(model: VolumeDenoiser, depths: int, samples: int) -> VolumeDenoiser:
    """A network with more depth samples than the given one that renders nearly the same views.

    What fills a depth is interpolated between the outputs for the old ones. Cells are as many times thinner, and each
    as many times less opaque.

    Args:
        model: The network.
        depths: D, a multiple of the network's own.
        samples: On each ray.

    Raises:
        InputError: It is no multiple.
    """
    old = int(model.config["depths"])
    times, rest = divmod(depths, old)
    if rest or not times:
        raise InputError(
            f"Weights for {old} depths cannot become a network of {depths}.", f"Choose a multiple of {old}."
        )
    sizes = {k: v for k, v in model.config.items() if not k.startswith("_")}
    deeper = VolumeDenoiser(**{**sizes, "depths": depths, "samples": samples})
    state = model.state_dict()
    for name in ("shape.head.weight", "shape.head.bias"):
        logits, colors = state[name][:old], state[name][old:].unflatten(0, (3, -1))
        state[name] = torch.cat([_between(part, times) for part in (logits, *colors)])
    # Each of the `times` thinner cells gets 1/times of the optical depth: for small p, softplus(logit) ≈ p, so subtract
    # log(times).
    state["opacity"] = state["opacity"] - torch.tensor([0.0, math.log(times)])
    deeper.load_state_dict(state)
    return deeper


def _between(values: Tensor, times: int) -> Tensor:
    """(n, …) → (times·n, …), linear between the centres of equal intervals."""
    along = F.interpolate(values.flatten().view(1, len(values), -1).mT, scale_factor=times, mode="linear")
    return along.mT.reshape(-1, *values.shape[1:])
