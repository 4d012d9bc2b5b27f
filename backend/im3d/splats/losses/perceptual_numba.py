"""The distance of one layer's features on the CPU, value and gradient in one numba pass.

Torch needs about twenty passes over memory for the same numbers; at 256² that took as long as the convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

F = np.float32


def layer_distance(mine: Tensor, theirs: Tensor, weight: Tensor, unit: float, tiny: float, eps: float) -> Tensor:
    """Mean over pixels of Σ_c w_c·(f_c/|f| − t_c)², as `Perceptual.forward` takes it.

    Args:
        mine: (B, C, H, W) float32 features, differentiable; fastest when laid out channels last.
        theirs: (B, C, H, W) int16, the target's unit-length features in steps of `unit`.
        weight: (C,) float32.
        unit: What 1 in `theirs` stands for.
        tiny: Squared length below which a feature has no direction, so no gradient.
        eps: Added to every length.

    Returns:
        ().
    """
    result: Tensor = _LayerDistance.apply(mine, theirs, weight, unit, tiny, eps)
    return result


class _LayerDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, theirs: Tensor, weight: Tensor, unit: float, tiny: float, eps: float) -> Tensor:
        B, C, H, W = mine.shape
        f, t = (x.detach().permute(0, 2, 3, 1).contiguous() for x in (mine, theirs))
        gradient = torch.empty_like(f)
        rows = np.empty(B * H, np.float64)
        arrays = (x.view(B * H, W, C).numpy() for x in (f, t, gradient))
        _distance(*arrays, weight.numpy(), F(unit), F(tiny), F(eps), rows)
        ctx.gradient = gradient
        return torch.tensor(rows.sum() / (B * H * W), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.gradient * upstream[0]).permute(0, 3, 1, 2), None, None, None, None, None


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _distance(f, t, gradient, weight, unit, tiny, eps, rows):  # type: ignore[no-untyped-def]
    """Rows' sums, and the gradient of the mean, of features (rows, W, C)."""
    height, width, channels = f.shape
    share = F(1.0) / F(height * width)
    for i in prange(height):
        total = 0.0
        for j in range(width):
            squared = F(0)
            energy = F(0)
            shared = F(0)
            theirs = F(0)
            for c in range(channels):
                mine = f[i, j, c]
                target = F(t[i, j, c]) * unit
                w = weight[c]
                squared += mine * mine
                energy += w * mine * mine
                shared += w * mine * target
                theirs += w * target * target
            root = np.sqrt(max(squared, tiny))
            inverse = F(1.0) / (root + eps)
            total += energy * inverse * inverse - F(2.0) * shared * inverse + theirs
            both = F(2.0) * share * inverse
            # The derivative of the length, along the feature itself.
            along = F(0.0)
            if squared > tiny:
                along = (shared - energy * inverse) * inverse * both / root
            for c in range(channels):
                mine = f[i, j, c]
                w = weight[c]
                gradient[i, j, c] = both * w * (mine * inverse - F(t[i, j, c]) * unit) + along * mine
        rows[i] = total
