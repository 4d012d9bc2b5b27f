"""LPIPS by VGG16 on a GPU: the distance of images and its gradient, in one forward and one backward pass.

VGG16 is bound by memory bandwidth: its first maps of four pictures of 512² have 134 MB each, and autograd reads them
once each for the bias, the activation, the pooling, the distance and the sum of gradients. Here cuDNN fuses bias and
ReLU into the convolution, and the backward pass between two blocks (pooling, ReLU and the distance of the block's last
map) is one Triton kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im3d.splats.losses.perceptual_triton import TILE, triton

if triton is not None:
    import triton.language as tl

    from im3d.splats.losses.perceptual_triton import distance_and_slope


def vgg16_distance(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    blocks: list[list[nn.Conv2d]],
    targets: list[Tensor],
    rows: Tensor,
    weights: list[Tensor],
    unit: float,
    tiny: float,
    eps: float,
) -> Tensor:
    """Σ over blocks of the mean over pixels of Σ_c w_c·(f_c/|f| − t_c)², as `Perceptual.forward` takes it.

    Args:
        images: (B, 3, H, W) float32 in [0, 1]; the only differentiable one.
        mean, std: (1, 3, 1, 1), the normalisation of the network's input.
        blocks: The convolutions, all of one precision, in which the network computes; 2 × 2 maxima between blocks.
        targets: For each block (K, h, w, C) int16, unit-length features of all targets in steps of `unit`.
        rows: (B,) int64, which targets the images are compared with.
        weights: For each block (C,) float32.
        unit, tiny, eps: As `perceptual_triton.layer_distance` has them.

    Returns:
        () float32.
    """
    result: Tensor = _Vgg16Distance.apply(images, mean, std, blocks, targets, rows, weights, (unit, tiny, eps))
    return result


class _Vgg16Distance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        mean: Tensor,
        std: Tensor,
        blocks: list[list[nn.Conv2d]],
        targets: list[Tensor],
        rows: Tensor,
        weights: list[Tensor],
        constants: tuple[float, float, float],
    ) -> Tensor:
        x = ((images.detach() - mean) / std).to(blocks[0][0].weight.dtype, memory_format=torch.channels_last)
        maps = _all_maps(x, blocks)
        total = images.new_zeros(())
        gradient: Tensor | None = None
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        for i in reversed(range(len(blocks))):
            mine = maps[i][-1]
            share = 1 / (mine.shape[0] * mine.shape[2] * mine.shape[3])
            # Gradients are those of the finest map's sum: a pixel's share of a mean is too small for half precision.
            value, gradient = _between_blocks(mine, targets[i], rows, weights[i], pixels * share, gradient, constants)
            total = total + value * share
            gradient = _through_block(gradient, maps[i], blocks[i])
        assert gradient is not None
        ctx.gradient = gradient.float() / (std * pixels)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * upstream[0], None, None, None, None, None, None, None


def _all_maps(x: Tensor, blocks: list[list[nn.Conv2d]]) -> list[list[Tensor]]:
    """For each block its input and the output of each of its convolutions, after ReLU."""
    maps = []
    for i, block in enumerate(blocks):
        of_block = [_max_pooled(x) if i else x]
        for convolution in block:
            of_block.append(_activated(of_block[-1], convolution))
        x = of_block[-1]
        maps.append(of_block)
    return maps


def _through_block(gradient: Tensor, maps: list[Tensor], block: list[nn.Conv2d]) -> Tensor:
    """The gradient with respect to a block's input, from that with respect to its last pre-ReLU activation."""
    for i in reversed(range(len(block))):
        gradient = torch.ops.aten.convolution_backward(
            gradient, maps[i], block[i].weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, False, False)
        )[0]
        if i:
            gradient = torch.ops.aten.threshold_backward(gradient, maps[i], 0)
    return gradient


def _activated(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    if x.is_cuda and torch.version.cuda is not None and torch.backends.cudnn.is_available():
        return torch.cudnn_convolution_relu(x, convolution.weight, convolution.bias, (1, 1), (1, 1), (1, 1), 1)
    return F.relu(convolution(x), inplace=True)


def _max_pooled(x: Tensor) -> Tensor:
    """2 × 2 maxima of (B, C, H, W), channels last."""
    B, C, H, W = x.shape
    result = torch.empty(B, C, H // 2, W // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = max(1, TILE // C)
    _maxima[(triton.cdiv((H // 2) * (W // 2), pixels), B)](x, result, H, W, C, pixels)
    return result


def _between_blocks(
    mine: Tensor,
    theirs: Tensor,
    rows: Tensor,
    weight: Tensor,
    factor: float,
    below: Tensor | None,
    constants: tuple[float, float, float],
) -> tuple[Tensor, Tensor]:
    """The sum over pixels of a map's distances, and the gradient with respect to the pre-ReLU activation.

    Args:
        mine: (B, C, H, W), channels last, C a power of two.
        theirs, rows, weight, constants: As `vgg16_distance` takes them.
        factor: Of the distance's gradient.
        below: (B, C, H // 2, W // 2), the gradient with respect to the pooled map, channels last; None after the last
            block.
    """
    B, C, H, W = mine.shape
    gradient = torch.empty_like(mine)
    pixels = max(1, TILE // C)
    blocks = triton.cdiv(H * W, pixels)
    sums = torch.empty(B, blocks, device=mine.device)
    maxima = gradient if below is None else below.contiguous(memory_format=torch.channels_last)
    _back[(blocks, B)](
        mine, theirs, rows, weight, maxima, gradient, sums, factor, *constants, H, W, C, pixels, below is not None
    )  # fmt: skip
    return sums.sum(), gradient


if triton is not None:

    @triton.jit
    def _window(f, base, channels, width, inside):  # type: ignore[no-untyped-def]
        """The four values of windows whose first ones lie at `base`, row by row."""
        a = tl.load(f + base, mask=inside, other=0.0)
        b = tl.load(f + base + channels, mask=inside, other=0.0)
        c = tl.load(f + base + width * channels, mask=inside, other=0.0)
        d = tl.load(f + base + (width + 1) * channels, mask=inside, other=0.0)
        return a, b, c, d

    @triton.jit
    def _maxima(f, out, height, width, C: tl.constexpr, P: tl.constexpr):  # type: ignore[no-untyped-def]
        """P pixels of the maxima of one image."""
        view = tl.program_id(1).to(tl.int64)
        p, c = tl.program_id(0) * P + tl.arange(0, P), tl.arange(0, C)[None, :]
        half_width, count = width // 2, (height // 2) * (width // 2)
        inside = (p < count)[:, None]
        first = (2 * (p // half_width) * width + 2 * (p % half_width))[:, None]
        base = (view * height * width + first) * C + c
        w, x, y, z = _window(f, base, C, width, inside)
        tl.store(out + (view * count + p[:, None]) * C + c, tl.maximum(tl.maximum(w, x), tl.maximum(y, z)), mask=inside)

    @triton.jit
    def _back(  # type: ignore[no-untyped-def]
        f, t, rows, weight, below, gradient, sums, factor, unit, tiny, eps, height, width,
        C: tl.constexpr, P: tl.constexpr, POOLED: tl.constexpr,
    ):  # fmt: skip
        """P pixels of one image: sum of distances, and gradient with respect to the pre-ReLU activation."""
        block, view = tl.program_id(0), tl.program_id(1).to(tl.int64)
        p, c = block * P + tl.arange(0, P), tl.arange(0, C)[None, :]
        pixels = height * width
        inside = (p < pixels)[:, None]
        place = p[:, None] * C + c
        here = view * pixels * C + place
        w = tl.load(weight + c)
        mine = tl.load(f + here, mask=inside, other=0.0)
        target = tl.load(t + tl.load(rows + view) * pixels * C + place, mask=inside, other=0).to(tl.float32) * unit
        distance, slope = distance_and_slope(mine.to(tl.float32), target, w, tiny, eps)
        tl.store(sums + view * tl.num_programs(0) + block, tl.sum(tl.where(p < pixels, distance, 0.0), axis=0))
        total = slope * factor
        if POOLED:
            row, column = p // width, p % width
            # The last row or column of an odd side is in no window.
            pooled = ((p < pixels) & (row // 2 < height // 2) & (column // 2 < width // 2))[:, None]
            first = ((row // 2 * 2) * width + column // 2 * 2)[:, None]
            a, b, d, e = _window(f, (view * pixels + first) * C + c, C, width, pooled)
            # The first of equal ones is the maximum, as torch has it.
            upper, lower = tl.maximum(a, b), tl.maximum(d, e)
            winner = tl.where(lower > upper, tl.where(e > d, 3, 2), tl.where(b > a, 1, 0))
            mask = pooled & (winner == (row % 2 * 2 + column % 2)[:, None])
            small = (view * (height // 2) * (width // 2) + (row // 2 * (width // 2) + column // 2)[:, None]) * C + c
            total += tl.load(below + small, mask=mask, other=0.0).to(tl.float32)
        tl.store(gradient + here, tl.where(mine > 0, total, 0.0).to(gradient.dtype.element_ty), mask=inside)
