"""Silhouettes as signed distances, exact below a pixel, and the visual hull they cut out of space."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from im3d.core.orbit import Cameras
from im3d.core.projection import project_point
from im3d.core.threads import on_all_cores
from im3d.errors import InputError
from im3d.mesh.fusion.distance import distance_to_false

FloatArray = NDArray[np.float32]
# Distances are computed on a grid this many times finer than the pixels.
SUBPIXELS = 4
# Samples along each side of the blocks in which the hull's distances are taken.
BLOCK = 4
NEAREST = 1e-3  # points nearer to a camera than this are not judged by it
# Samples along each side of the grids in which the object is looked for.
COARSE = 64
# A hull is flat when its shortest side is under this share of the longest, and it is seen edge-on when no silhouette
# holds a disc of this radius, as a share of the picture's side (2.5 pixels of 256): nothing shows the broad side.
FLAT_SHARE, EDGE_ON_RADIUS = 0.1, 0.01


@dataclass(frozen=True)
class Grid:
    """A cube of n³ samples.

    Attributes:
        low: (3,) world position of sample (0, 0, 0).
        step: Spacing in world units.
        n: Samples along each side.
    """

    low: NDArray[np.float64]
    step: float
    n: int

    @classmethod
    def around(cls, low: NDArray[np.float64], high: NDArray[np.float64], n: int) -> Grid:
        """The cube about the middle of a box that holds it whole."""
        side = float((high - low).max())
        return cls((low + high) / 2 - side / 2, side / (n - 1), n)


def all_signed_distances(alphas: FloatArray) -> FloatArray:
    """(C, n, n) `signed_distances` of C coverages (C, S, S), in pixels, on all cores."""
    count, size = alphas.shape[:2]
    found = np.empty((count, size * SUBPIXELS, size * SUBPIXELS), np.float32)

    def fill(k: int) -> None:
        found[k] = signed_distances(alphas[k])

    on_all_cores(fill, range(count))
    return found


def signed_distances(alpha: FloatArray) -> FloatArray:
    """Distance in pixels to the line where coverage is one half, positive outside.

    Args:
        alpha: (S, S) coverage in [0, 1]; antialiased edges are located by interpolation.

    Returns:
        (SUBPIXELS·S)² samples; sample (j, i) lies at pixel coordinates ((i + 0.5)/SUBPIXELS, (j + 0.5)/SUBPIXELS).
    """
    inside = _covered(np.ascontiguousarray(alpha, np.float32))
    outward, inward = distance_to_false(~inside), distance_to_false(inside)
    # Half a sample less: the line lies between an inner and an outer sample.
    return (outward - inward - np.where(inside, np.float32(-0.5), np.float32(0.5))) / np.float32(SUBPIXELS)


def hull_field(distances: FloatArray, cameras: Cameras, grid: Grid, cut: float) -> FloatArray:
    """Signed distance, in world units, to the intersection of the silhouettes' cones.

    Args:
        distances: (C, n, n) from `signed_distances`, in pixels.
        cameras: The C cameras.
        grid: Where to sample.
        cut: Where the distance is more than this, outside or inside, its exact value does not matter.

    Returns:
        (n, n, n), positive outside, indexed x, y, z.
    """
    return _hull_field(distances, cameras.viewmats, cameras.focal, cameras.size, grid.low, grid.step, grid.n, cut)


def hull_grid(
    distances: FloatArray, cameras: Cameras, radius: float, n: int, margin: float, others: FloatArray | None = None
) -> Grid:
    """The grid that just holds the visual hull, found coarse to fine.

    Args:
        radius: Distance of the cameras from the origin.
        n: Samples along each side.
        margin: Share of the side that stays free around the hull.
        others: (P, 3) points that must lie in the grid too.

    Raises:
        InputError: The silhouettes have no common volume, or it is flat and seen from its edge alone.
    """
    coarse = search_grid(cameras, radius)
    for _ in range(2):
        inside = np.argwhere(hull_field(distances, cameras, coarse, coarse.step) < 0.75 * coarse.step)
        if len(inside) < 8:
            raise InputError(
                "The silhouettes of the views have no common volume.",
                "Check the masks, the elevation and the order of the views.",
            )
        low = coarse.low + (inside.min(axis=0) - 1) * coarse.step
        high = coarse.low + (inside.max(axis=0) + 1) * coarse.step
        coarse = Grid.around(low, high, COARSE)
    shortest, middle, longest = np.sort(high - low)
    is_plate = shortest < FLAT_SHARE * longest and middle > 0.25 * longest
    if is_plate and -distances.min() < EDGE_ON_RADIUS * cameras.size:
        raise InputError(
            "The views show a flat object only from its edge.", "Use views from higher up, or check the elevation."
        )
    if others is not None and len(others):
        low, high = np.minimum(low, others.min(axis=0)), np.maximum(high, others.max(axis=0))
    space = margin * float((high - low).max())
    return Grid.around(low - space, high + space, n)


def search_grid(cameras: Cameras, radius: float) -> Grid:
    """The coarse grid in which `hull_grid` begins: about the origin, as far as the cameras see."""
    half = min(radius * 0.5 * cameras.size / cameras.focal * 1.05, radius * 0.9)
    return Grid.around(np.full(3, -half), np.full(3, half), COARSE)


def pixels_for(cut: float, cameras: Cameras, grid: Grid) -> float:
    """Pixels that `cut` world units measure at most, seen from any camera anywhere in the grid.

    Where a camera stands in the grid, more than a picture's diagonal.
    """
    low, side = grid.low, grid.step * (grid.n - 1)
    corners = np.array([low + side * np.array(c) for c in itertools.product((0, 1), repeat=3)])
    nearest = float(cameras.project(corners)[..., 2].min())
    everything = 1.5 * cameras.size
    # One more, because between the samples distances are interpolated.
    return min(cut * cameras.focal / nearest + 1, everything) if nearest > NEAREST else everything


@njit(nogil=True, cache=True)
def _covered(alpha):  # type: ignore[no-untyped-def]
    """Where bilinear coverage exceeds one half, at SUBPIXELS² places of every pixel."""
    size = len(alpha)
    at = np.empty(size * SUBPIXELS, np.int32)
    share = np.empty(size * SUBPIXELS, np.float32)
    for i in range(len(at)):
        x = min(max((i + 0.5) / SUBPIXELS - 0.5, 0.0), size - 1.0)
        at[i] = min(int(x), size - 2)
        share[i] = x - at[i]
    out = np.empty((len(at), len(at)), np.bool_)
    for j in range(len(at)):
        above, below, t = alpha[at[j]], alpha[at[j] + 1], share[j]
        for i in range(len(at)):
            k, s = at[i], share[i]
            top = above[k] + (above[k + 1] - above[k]) * s
            bottom = below[k] + (below[k + 1] - below[k]) * s
            out[j, i] = top + (bottom - top) * t > 0.5
    return out


@njit(parallel=True, fastmath=True, cache=True)
def _hull_field(distances, viewmats, f, size, low, step, n, cut):  # type: ignore[no-untyped-def]
    """Block by block: one whose middle lies farther from the surface than its corners reach keeps that one value.

    Only distances up to `cut` count, on either side.
    """
    out = np.empty((n, n, n), np.float32)
    blocks = (n + BLOCK - 1) // BLOCK
    middle = 0.5 * (BLOCK - 1)
    # The field changes by a little more than the way, because pictures are magnified towards the camera.
    reach = cut + 1.25 * math.sqrt(3.0) * middle * step
    for block in prange(blocks * blocks):
        x0 = block // blocks * BLOCK
        y0 = block % blocks * BLOCK
        for z0 in range(0, n, BLOCK):
            value = _hull_distance(
                distances, viewmats, f, size,
                low[0] + (x0 + middle) * step, low[1] + (y0 + middle) * step, low[2] + (z0 + middle) * step, reach,
            )  # fmt: skip
            far = abs(value) > reach
            for x in range(x0, min(x0 + BLOCK, n)):
                for y in range(y0, min(y0 + BLOCK, n)):
                    for z in range(z0, min(z0 + BLOCK, n)):
                        if not far:
                            value = _hull_distance(
                                distances, viewmats, f, size,
                                low[0] + x * step, low[1] + y * step, low[2] + z * step, cut,
                            )  # fmt: skip
                        out[x, y, z] = value
    return out


@njit(fastmath=True, cache=True, error_model="numpy")
def _hull_distance(distances, viewmats, f, size, p0, p1, p2, enough):  # type: ignore[no-untyped-def]
    """Of one point, the largest over the views; the first that is larger than `enough`."""
    fine = distances.shape[1]
    sub = fine / size
    largest = -1e9
    for v in range(len(distances)):
        u, w, depth = project_point(viewmats[v], f, size / 2, p0, p1, p2)
        if depth < NEAREST:
            continue
        a = min(max(u * sub - 0.5, 0.0), fine - 1.001)
        b = min(max(w * sub - 0.5, 0.0), fine - 1.001)
        i = int(a)
        j = int(b)
        a -= i
        b -= j
        top = distances[v, j, i] * (1 - a) + distances[v, j, i + 1] * a
        bottom = distances[v, j + 1, i] * (1 - a) + distances[v, j + 1, i + 1] * a
        largest = max(largest, (top * (1 - b) + bottom * b) * depth / f)
        if largest > enough:
            break
    return largest
