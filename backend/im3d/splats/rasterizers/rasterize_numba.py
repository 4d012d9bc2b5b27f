"""The CPU rasteriser: forward and backward in numba, deterministic for any number of threads.

Splats are sorted by depth once, then distributed by a counting sort over tiles of 16 × 16 pixels, so that every tile's
list is depth-sorted. The inner loops always run over one whole row of 16 pixels: the constant trip count is what lets
the compiler use vector instructions (ten times faster than testing each pixel). The exponential is a degree-5
polynomial of x/16 raised to the 16th power (relative error 1e-6 near the centre, 2e-4 at the cut-off).

The backward pass goes front to back like the forward one. With S = Σ_c g_c·C_c + g_T·T per pixel (final colour and
transmittance times their gradients), what lies behind a splat contributes S minus the running prefix, so no per-pixel
lists and no back-to-front traversal are needed. Gradients go to one slot per (splat, tile) pair, summed per splat in a
fixed order: no atomics, the same bits on any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray
from torch import Tensor

from im3d.splats.rasterizers.project import Projected

TILE = 16
F = np.float32
# exp(-7) < 1/1000: no splat of opacity ≤ 1 is visible beyond the cut-off of 1/255 at -5.55.
MAX_EXPONENT = F(7.0)
MIN_ALPHA = F(1 / 255)
MAX_ALPHA = F(0.999)
# A tile is finished when the transmittance of all of its pixels is below this; gsplat stops each pixel there.
MIN_TRANSMITTANCE = F(1e-4)
CHECK_EVERY = 32  # splats between tests whether a tile is finished


@dataclass(frozen=True)
class Tiles:
    """Which splats touch which tile, near to far.

    Attributes:
        per_side: Tiles along each side of the image.
        offsets: (T + 1,) slots of tile t are offsets[t] … offsets[t + 1].
        splats: (M,) splat of each slot, depth-sorted within a tile.
        splat_offsets: (N + 1,) and
        slots: (M,): the slots of splat i are slots[splat_offsets[i] : splat_offsets[i + 1]].
    """

    per_side: int
    offsets: NDArray[np.int64]
    splats: NDArray[np.int32]
    splat_offsets: NDArray[np.int64]
    slots: NDArray[np.int64]


def bin_tiles(projected: Projected, size: int) -> Tiles:
    """Sorts the splats into the tiles of a square image of `size` pixels."""
    per_side = (size + TILE - 1) // TILE
    means, extents, visible, depths = (
        t.detach().numpy() for t in (projected.means2d, projected.extents, projected.visible, projected.depths)
    )
    boxes = np.empty((len(means), 4), np.int32)
    counts = _tile_boxes(np.ascontiguousarray(means), np.ascontiguousarray(extents), visible, per_side, boxes)
    order = _sorted_by(np.ascontiguousarray(depths).view(np.uint32))
    return Tiles(per_side, *_deal(order, boxes, counts, per_side))


def rasterize(projected: Projected, colors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Renders one image.

    Args:
        projected: From `project`.
        colors: (N, 3) what each splat carries: sRGB, or any three numbers.
        size: Image side in pixels.

    Returns:
        Premultiplied colour (size, size, 3) and transmittance (size, size), both differentiable.
    """
    image, transmittance = _Rasterize.apply(
        projected.means2d, projected.conics, projected.opacities, colors, projected, size
    )
    return image, transmittance


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor, projected: Projected, size: int
    ) -> tuple[Tensor, Tensor]:
        tiles = bin_tiles(projected, size)
        inputs = [t.detach().contiguous().numpy() for t in (means2d, conics, opacities, colors, projected.extents)]
        image = np.empty((size, size, 3), np.float32)
        transmittance = np.empty((size, size), np.float32)
        last = np.empty(tiles.per_side**2, np.int64)
        order = balanced(np.diff(tiles.offsets))
        _forward(*inputs, tiles.offsets, tiles.splats, size, tiles.per_side, order, image, transmittance, last)
        ctx.saved = (inputs, tiles, size, image, transmittance, last)
        return torch.from_numpy(image), torch.from_numpy(transmittance)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, tiles, size, image, transmittance, last = ctx.saved
        g_slots = np.empty((len(tiles.splats), 9), np.float32)
        _backward(
            *inputs, tiles.offsets, tiles.splats, size, tiles.per_side, balanced(last - tiles.offsets[:-1]), last,
            image, transmittance, *(g.contiguous().numpy() for g in gradients), g_slots,
        )  # fmt: skip
        total = np.zeros((len(inputs[0]), 9), np.float32)
        _sum_slots(g_slots, tiles.splat_offsets, tiles.slots, total)
        g = torch.from_numpy(total)
        return g[:, 0:2], g[:, 2:5], g[:, 5], g[:, 6:9], None, None


def balanced(work: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the tiles in which every thread's run of them holds about the same work.

    numba gives each thread one run of neighbours, which for most objects leaves some with little to do.
    """
    threads = get_num_threads()
    order = np.argsort(-work, kind="stable")
    return np.concatenate([order[first::threads] for first in range(threads)])


@njit(parallel=True, fastmath=True, cache=True)
def _tile_boxes(means, extents, visible, per_side, boxes):  # type: ignore[no-untyped-def]
    """Tile ranges x0, x1, y0, y1 of each splat; returns how many tiles each touches."""
    counts = np.zeros(len(means), np.int64)
    for i in prange(len(means)):
        for axis in range(2):
            lo = 0
            hi = 0
            if visible[i]:
                lo = int(max(0.0, math.floor((means[i, axis] - extents[i, axis]) / TILE)))
                hi = int(min(float(per_side), math.floor((means[i, axis] + extents[i, axis]) / TILE) + 1))
            boxes[i, 2 * axis] = lo
            boxes[i, 2 * axis + 1] = max(lo, hi)
        counts[i] = (boxes[i, 1] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 2])
    return counts


@njit(cache=True)
def _sorted_by(bits):  # type: ignore[no-untyped-def]
    """Stable order of positive float32 numbers given by their bits, which sort alike; three passes of a radix sort."""
    n = len(bits)
    order = np.arange(n).astype(np.int32)
    other = np.empty(n, np.int32)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for i in range(n):
            starts[((bits[i] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
        starts = np.cumsum(starts)
        for k in range(n):
            i = order[k]
            digit = (bits[i] >> np.uint32(shift)) & np.uint32(2047)
            other[starts[digit]] = i
            starts[digit] += 1
        order, other = other, order
    return order


@njit(cache=True)
def _deal(order, boxes, counts, per_side):  # type: ignore[no-untyped-def]
    """Counting sort into tiles: splats are visited near to far, so every tile's list comes out sorted."""
    n = len(order)
    offsets = np.zeros(per_side * per_side + 1, np.int64)
    for i in range(n):
        for ty in range(boxes[i, 2], boxes[i, 3]):
            for tx in range(boxes[i, 0], boxes[i, 1]):
                offsets[ty * per_side + tx + 1] += 1
    offsets = np.cumsum(offsets)
    cursor = offsets[:-1].copy()
    splat_offsets = np.zeros(n + 1, np.int64)
    splat_offsets[1:] = np.cumsum(counts)
    splats = np.empty(offsets[-1], np.int32)
    slots = np.empty(offsets[-1], np.int64)
    for k in range(n):
        i = order[k]
        p = splat_offsets[i]
        for ty in range(boxes[i, 2], boxes[i, 3]):
            for tx in range(boxes[i, 0], boxes[i, 1]):
                t = ty * per_side + tx
                slots[p] = cursor[t]
                splats[cursor[t]] = i
                cursor[t] += 1
                p += 1
    return offsets, splats, splat_offsets, slots


@njit(inline="always", fastmath=True)
def falloff(sigma):  # type: ignore[no-untyped-def]
    """exp(−sigma) for sigma in [0, 7]."""
    p = F(1.0) - sigma * F(1 / 16) * (
        F(1.0)
        - sigma * F(1 / 32) * (F(1.0) - sigma * F(1 / 48) * (F(1.0) - sigma * F(1 / 64) * (F(1.0) - sigma * F(1 / 80))))
    )
    p = p * p
    p = p * p
    p = p * p
    return p * p


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _forward(  # type: ignore[no-untyped-def]
    means, conics, opacities, colors, extents, offsets, splats, size, per_side, order, image, through, last
):  # fmt: skip
    for tile in prange(len(order)):
        t = order[tile]
        px0 = (t % per_side) * TILE
        py0 = (t // per_side) * TILE
        T = np.ones((TILE, TILE), np.float32)
        C = np.zeros((3, TILE, TILE), np.float32)
        end = offsets[t + 1]
        s = offsets[t]
        checked = 0
        while s < end:
            g = splats[s]
            mx = means[g, 0] - F(0.5) - F(px0)
            my = means[g, 1] - F(0.5) - F(py0)
            a = F(0.5) * conics[g, 0]
            b = conics[g, 1]
            c = F(0.5) * conics[g, 2]
            o = opacities[g]
            r0 = colors[g, 0]
            r1 = colors[g, 1]
            r2 = colors[g, 2]
            for y in range(max(0, math.ceil(my - extents[g, 1])), min(TILE, math.floor(my + extents[g, 1]) + 1)):
                dy = F(y) - my
                cyy = c * dy * dy
                bdy = b * dy
                Ty = T[y]
                C0 = C[0, y]
                C1 = C[1, y]
                C2 = C[2, y]
                for x in range(TILE):
                    dx = F(np.int32(x)) - mx
                    alpha = min(o * falloff(min((a * dx + bdy) * dx + cyy, MAX_EXPONENT)), MAX_ALPHA)
                    alpha = alpha if alpha >= MIN_ALPHA else F(0.0)
                    w = alpha * Ty[x]
                    C0[x] += w * r0
                    C1[x] += w * r1
                    C2[x] += w * r2
                    Ty[x] -= w
            s += 1
            checked += 1
            if checked == CHECK_EVERY:
                checked = 0
                clearest = F(0.0)
                for y in range(TILE):
                    for x in range(TILE):
                        clearest = max(clearest, T[y, x])
                if clearest < MIN_TRANSMITTANCE:
                    break
        last[t] = s
        for y in range(min(TILE, size - py0)):
            for x in range(min(TILE, size - px0)):
                for k in range(3):
                    image[py0 + y, px0 + x, k] = C[k, y, x]
                through[py0 + y, px0 + x] = T[y, x]


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _backward(  # type: ignore[no-untyped-def]
    means, conics, opacities, colors, extents, offsets, splats, size, per_side, order, last,
    image, through, g_image, g_through, g_slots,
):  # fmt: skip
    for tile in prange(len(order)):
        t = order[tile]
        px0 = (t % per_side) * TILE
        py0 = (t // per_side) * TILE
        T = np.ones((TILE, TILE), np.float32)
        behind = np.zeros((TILE, TILE), np.float32)  # Σ gradient · what this and all later splats still contribute
        G = np.zeros((3, TILE, TILE), np.float32)
        for y in range(min(TILE, size - py0)):
            for x in range(min(TILE, size - px0)):
                total = through[py0 + y, px0 + x] * g_through[py0 + y, px0 + x]
                for k in range(3):
                    G[k, y, x] = g_image[py0 + y, px0 + x, k]
                    total += G[k, y, x] * image[py0 + y, px0 + x, k]
                behind[y, x] = total
        for s in range(offsets[t], offsets[t + 1]):
            if s >= last[t]:
                for k in range(9):
                    g_slots[s, k] = F(0.0)
                continue
            g = splats[s]
            mx = means[g, 0] - F(0.5) - F(px0)
            my = means[g, 1] - F(0.5) - F(py0)
            a = F(0.5) * conics[g, 0]
            b = conics[g, 1]
            c = F(0.5) * conics[g, 2]
            o = opacities[g]
            r0 = colors[g, 0]
            r1 = colors[g, 1]
            r2 = colors[g, 2]
            d_mx = d_my = d_a = d_b = d_c = d_o = d0 = d1 = d2 = F(0)
            for y in range(max(0, math.ceil(my - extents[g, 1])), min(TILE, math.floor(my + extents[g, 1]) + 1)):
                dy = F(y) - my
                cyy = c * dy * dy
                bdy = b * dy
                Ty = T[y]
                By = behind[y]
                G0 = G[0, y]
                G1 = G[1, y]
                G2 = G[2, y]
                m0 = m1 = m2 = F(0)  # moments of dL/dsigma along the row
                for x in range(TILE):
                    dx = F(np.int32(x)) - mx
                    raw = o * falloff(min((a * dx + bdy) * dx + cyy, MAX_EXPONENT))
                    alpha = min(raw, MAX_ALPHA)
                    alpha = alpha if alpha >= MIN_ALPHA else F(0.0)
                    Ti = Ty[x]
                    w = alpha * Ti
                    d0 += w * G0[x]
                    d1 += w * G1[x]
                    d2 += w * G2[x]
                    own = w * (r0 * G0[x] + r1 * G1[x] + r2 * G2[x])
                    rest = By[x] - own
                    ds = rest * alpha / (F(1.0) - alpha) - own
                    ds = ds if raw <= MAX_ALPHA else F(0.0)  # the clamp has no gradient
                    By[x] = rest
                    Ty[x] = Ti - w
                    m0 += ds
                    m1 += ds * dx
                    m2 += ds * dx * dx
                d_a += F(0.5) * m2
                d_b += m1 * dy
                d_c += F(0.5) * m0 * dy * dy
                d_mx -= F(2.0) * a * m1 + bdy * m0
                d_my -= F(2.0) * c * dy * m0 + b * m1
                d_o -= m0
            g_slots[s, 0] = d_mx
            g_slots[s, 1] = d_my
            g_slots[s, 2] = d_a
            g_slots[s, 3] = d_b
            g_slots[s, 4] = d_c
            g_slots[s, 5] = d_o / o
            g_slots[s, 6] = d0
            g_slots[s, 7] = d1
            g_slots[s, 8] = d2


@njit(parallel=True, cache=True)
def _sum_slots(g_slots, splat_offsets, slots, total):  # type: ignore[no-untyped-def]
    for i in prange(len(total)):
        for p in range(splat_offsets[i], splat_offsets[i + 1]):
            for k in range(total.shape[1]):
                total[i, k] += g_slots[slots[p], k]
