"""One scale of MS-SSIM on a GPU, value and gradient in four Triton kernels.

Torch takes two dozen passes over maps of the picture's size, and its matrix products with a banded matrix are mostly
products with zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from im3d.splats.losses.perceptual_triton import triton

if triton is not None:
    import triton.language as tl

BLOCK = 1024  # pixels that one program works on


def similarity(
    x: Tensor,
    targets: Tensor,
    means: Tensor,
    variances: Tensor,
    rows: Tensor,
    window: Tensor,
    constants: tuple[float, float],
    luminance: bool,
) -> Tensor:
    """Mean over each plane of the contrast-structure term, with `luminance` times the luminance term.

    Args:
        x: (B, C, H, W) float32 images, the only differentiable ones.
        targets: (K, C, H, W) all that images may be compared with.
        means, variances: (K, C, H − n + 1, W − n + 1) their Gaussian-weighted local statistics.
        rows: (B,) int64, which targets.
        window: (n,) float32 of unit sum.
        constants: C₁ and C₂ (Wang et al. 2004).
        luminance: Whether the luminance term counts.

    Returns:
        (B, C).
    """
    result: Tensor = _Similarity.apply(x, targets, means, variances, rows, window, constants, luminance)
    return result


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        targets: Tensor,
        means: Tensor,
        variances: Tensor,
        rows: Tensor,
        window: Tensor,
        constants: tuple[float, float],
        luminance: bool,
    ) -> Tensor:
        B, C, H, W = x.shape
        n = len(window)
        h, w = H - n + 1, W - n + 1
        x = x.detach().contiguous()
        wide, inner = x.new_empty(3, B * C, H, w), x.new_empty(3, B * C, h, w)
        blocks = triton.cdiv(h * w, BLOCK)
        sums, gradient = x.new_empty(B * C, blocks), torch.empty_like(x)
        _blur_rows[triton.cdiv(H * w, BLOCK), B * C](x, targets, rows, window, wide, H, W, w, C, n, BLOCK)
        _statistics[blocks, B * C](
            wide, means, variances, rows, window, inner, sums, H, h, w, C, *constants, n, luminance, BLOCK
        )
        _spread_columns[triton.cdiv(H * w, BLOCK), B * C](inner, window, wide, H, h, w, n, BLOCK)
        _spread_rows[triton.cdiv(H * W, BLOCK), B * C](
            wide, x, targets, rows, window, gradient, H, W, w, C, 1 / (h * w), n, BLOCK
        )
        ctx.gradient = gradient
        return sums.sum(dim=1).view(B, C) / (h * w)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * upstream[0][:, :, None, None], None, None, None, None, None, None, None


if triton is not None:

    @triton.jit
    def _target(rows, plane, channels):  # type: ignore[no-untyped-def]
        """Which plane of the targets belongs to a plane of the images."""
        return tl.load(rows + plane // channels) * channels + plane % channels

    @triton.jit
    def _blur_rows(  # type: ignore[no-untyped-def]
        x, y, rows, window, wide, height, width, inner, channels, N: tl.constexpr, BLOCK: tl.constexpr
    ):
        """x, x² and x·y of one plane, blurred along their rows."""
        plane = tl.program_id(1).to(tl.int64)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < height * inner
        place = i // inner * width + i % inner
        mine, theirs = x + plane * height * width, y + _target(rows, plane, channels) * height * width
        mean = tl.zeros([BLOCK], tl.float32)
        square, cross = mean, mean
        for k in tl.static_range(N):
            a = tl.load(mine + place + k, mask=inside, other=0.0)
            b = tl.load(theirs + place + k, mask=inside, other=0.0)
            weighted = tl.load(window + k) * a
            mean += weighted
            square += weighted * a
            cross += weighted * b
        step, here = tl.num_programs(1).to(tl.int64) * height * inner, plane * height * inner + i
        tl.store(wide + here, mean, mask=inside)
        tl.store(wide + step + here, square, mask=inside)
        tl.store(wide + 2 * step + here, cross, mask=inside)

    @triton.jit
    def _statistics(  # type: ignore[no-untyped-def]
        wide, means, variances, rows, window, slopes, sums, height, inner_height, inner, channels, c1, c2,
        N: tl.constexpr, LUMINANCE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Blurs one plane along its columns; the sum of the similarity, and its slope by each blurred map."""
        plane = tl.program_id(1).to(tl.int64)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < inner_height * inner
        step, first = tl.num_programs(1).to(tl.int64) * height * inner, wide + plane * height * inner + i
        m = tl.zeros([BLOCK], tl.float32)
        q, c = m, m
        for k in tl.static_range(N):
            weight, at = tl.load(window + k), first + k * inner
            m += weight * tl.load(at, mask=inside, other=0.0)
            q += weight * tl.load(at + step, mask=inside, other=0.0)
            c += weight * tl.load(at + 2 * step, mask=inside, other=0.0)
        there = _target(rows, plane, channels) * inner_height * inner + i
        mean = tl.load(means + there, mask=inside, other=0.0)
        variance = tl.load(variances + there, mask=inside, other=0.0)
        above, below = 2 * (c - m * mean) + c2, q - m * m + variance + c2
        value = above / below
        by_mean, by_square, by_cross = 2 * (m * value - mean) / below, -value / below, 2 / below
        if LUMINANCE:
            total = m * m + mean * mean + c1
            light = (2 * m * mean + c1) / total
            by_mean = by_mean * light + value * 2 * (mean - m * light) / total
            by_square, by_cross, value = by_square * light, by_cross * light, value * light
        tl.store(sums + plane * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(inside, value, 0.0), axis=0))
        step, here = tl.num_programs(1).to(tl.int64) * inner_height * inner, plane * inner_height * inner + i
        tl.store(slopes + here, by_mean, mask=inside)
        tl.store(slopes + step + here, by_square, mask=inside)
        tl.store(slopes + 2 * step + here, by_cross, mask=inside)

    @triton.jit
    def _spread_columns(  # type: ignore[no-untyped-def]
        slopes, window, wide, height, inner_height, inner, N: tl.constexpr, BLOCK: tl.constexpr
    ):
        """The transpose of the blur along columns, of three maps of one plane."""
        plane = tl.program_id(1).to(tl.int64)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside, row = i < height * inner, i // inner
        planes = tl.num_programs(1).to(tl.int64)
        first = slopes + plane * inner_height * inner + i
        step = planes * inner_height * inner
        a = tl.zeros([BLOCK], tl.float32)
        b, c = a, a
        for k in tl.static_range(N):
            from_row = row - k
            mask = inside & (from_row >= 0) & (from_row < inner_height)
            weight, at = tl.load(window + k), first - k * inner
            a += weight * tl.load(at, mask=mask, other=0.0)
            b += weight * tl.load(at + step, mask=mask, other=0.0)
            c += weight * tl.load(at + 2 * step, mask=mask, other=0.0)
        step, here = planes * height * inner, plane * height * inner + i
        tl.store(wide + here, a, mask=inside)
        tl.store(wide + step + here, b, mask=inside)
        tl.store(wide + 2 * step + here, c, mask=inside)

    @triton.jit
    def _spread_rows(  # type: ignore[no-untyped-def]
        wide, x, y, rows, window, gradient, height, width, inner, channels, share, N: tl.constexpr, BLOCK: tl.constexpr
    ):
        """The transpose of the blur along rows, and of the products it was taken of: the gradient of one plane."""
        plane = tl.program_id(1).to(tl.int64)
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside, row, column = i < height * width, i // width, i % width
        step = tl.num_programs(1).to(tl.int64) * height * inner
        first = wide + plane * height * inner + row * inner + column
        a = tl.zeros([BLOCK], tl.float32)
        b, c = a, a
        for k in tl.static_range(N):
            mask = inside & (column >= k) & (column - k < inner)
            weight = tl.load(window + k)
            a += weight * tl.load(first - k, mask=mask, other=0.0)
            b += weight * tl.load(first - k + step, mask=mask, other=0.0)
            c += weight * tl.load(first - k + 2 * step, mask=mask, other=0.0)
        mine = tl.load(x + plane * height * width + i, mask=inside, other=0.0)
        theirs = tl.load(y + _target(rows, plane, channels) * height * width + i, mask=inside, other=0.0)
        tl.store(gradient + plane * height * width + i, (a + 2 * mine * b + theirs * c) * share, mask=inside)
