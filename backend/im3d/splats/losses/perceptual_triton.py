"""The distance of one layer's features on a GPU, value and gradient in one Triton kernel.

Torch needs about twenty passes over memory for the same numbers. Triton comes with torch on Linux and builds a kernel
in a second or two, which it keeps on disk; where it is missing, torch's own operations do (`Perceptual.forward`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows
    triton = None

# Values of a tile: pixels × channels.
TILE = 4096


def available(device: torch.device) -> bool:
    """Whether Triton is there for this device."""
    return triton is not None and device.type == "cuda"


def layer_distance(
    mine: Tensor, theirs: Tensor, rows: Tensor, weight: Tensor, unit: float, tiny: float, eps: float
) -> Tensor:
    """Mean over B images' pixels of Σ_c w_c·(f_c/|f| − t_c)², as `Perceptual.forward` takes it.

    Args:
        mine: (B, C, H, W) features in any precision, differentiable; fastest when laid out channels last.
        theirs: (K, H, W, C) int16, unit-length features of all targets in steps of `unit`.
        rows: (B,) int64, which targets the images are compared with.
        weight: (C,) float32.
        unit: What 1 in `theirs` stands for.
        tiny: Squared length below which a feature has no direction, so no gradient.
        eps: Added to every length.

    Returns:
        () float32.
    """
    result: Tensor = _LayerDistance.apply(mine, theirs, rows, weight, unit, tiny, eps)
    return result


class _LayerDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mine: Tensor, theirs: Tensor, rows: Tensor, weight: Tensor, unit: float, tiny: float, eps: float
    ) -> Tensor:
        B, C, H, W = mine.shape
        f = mine.detach().permute(0, 2, 3, 1).contiguous()
        gradient = torch.empty_like(f)
        width = triton.next_power_of_2(C)
        pixels = max(1, TILE // width)
        blocks = triton.cdiv(H * W, pixels)
        sums = torch.empty(B, blocks, device=f.device)
        _distance[(blocks, B)](
            f, theirs, rows, weight, gradient, sums, H * W, C, unit, tiny, eps, width, pixels
        )  # fmt: skip
        ctx.gradient, ctx.share = gradient, 1 / (B * H * W)
        return sums.sum() * ctx.share

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # The kernel's is that of the sum, which half precision can hold.
        factor = (upstream[0] * ctx.share).to(ctx.gradient.dtype)
        gradient = (ctx.gradient * factor).permute(0, 3, 1, 2)
        return gradient, None, None, None, None, None, None


if triton is not None:

    @triton.jit
    def distance_and_slope(mine, target, w, tiny, eps):  # type: ignore[no-untyped-def]
        """Σ_c w_c·(f_c/|f| − t_c)² of each pixel (P,) of features f (P, C), and its gradient by f."""
        squared = tl.sum(mine * mine, axis=1)
        energy = tl.sum(w * mine * mine, axis=1)
        shared = tl.sum(w * mine * target, axis=1)
        theirs = tl.sum(w * target * target, axis=1)
        root = tl.sqrt(tl.maximum(squared, tiny))
        inverse = 1.0 / (root + eps)
        distance = energy * inverse * inverse - 2.0 * shared * inverse + theirs
        both = 2.0 * inverse
        # The derivative of the length, along the feature itself.
        along = tl.where(squared > tiny, (shared - energy * inverse) * inverse * both / root, 0.0)
        slope = both[:, None] * w * (mine * inverse[:, None] - target) + along[:, None] * mine
        return distance, slope

    @triton.jit
    def _distance(  # type: ignore[no-untyped-def]
        f, t, rows, weight, gradient, sums, pixels, channels, unit, tiny, eps, C: tl.constexpr, P: tl.constexpr
    ):
        """One tile of P pixels of one image: the sum of its distances, and their gradient."""
        block, view = tl.program_id(0), tl.program_id(1)
        p, c = block * P + tl.arange(0, P), tl.arange(0, C)
        inside = (p[:, None] < pixels) & (c[None, :] < channels)
        place = p[:, None] * channels + c[None, :]
        plane = pixels * channels
        here = view.to(tl.int64) * plane + place
        there = tl.load(rows + view) * plane + place
        w = tl.load(weight + c, mask=c < channels, other=0.0)[None, :]
        mine = tl.load(f + here, mask=inside, other=0.0).to(tl.float32)
        target = tl.load(t + there, mask=inside, other=0).to(tl.float32) * unit
        distance, slope = distance_and_slope(mine, target, w, tiny, eps)
        tl.store(sums + view * tl.num_programs(0) + block, tl.sum(tl.where(p < pixels, distance, 0.0), axis=0))
        tl.store(gradient + here, slope.to(gradient.dtype.element_ty), mask=inside)
