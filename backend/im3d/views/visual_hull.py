"""The visual hull of masks: the space that the silhouettes leave to the object, how well it fills them again, and how
well the views agree on its colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from im3d.core.orbit import Cameras
from im3d.core.projection import project_point

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Hull:
    """Occupied cells of a regular grid.

    Attributes:
        occupied: (X, Y, Z) bool.
        low: (3,) world position of the grid's lower corner.
        pitch: Side of a cell.
    """

    occupied: BoolArray
    low: NDArray[np.float64]
    pitch: float

    def points(self) -> NDArray[np.float64]:
        """(N, 3) centres of the occupied cells."""
        return (np.argwhere(self.occupied) + 0.5) * self.pitch + self.low

    def surface(self) -> NDArray[np.float64]:
        """(N, 3) centres of the occupied cells that have an empty neighbour across a face."""
        padded = np.pad(self.occupied, 1)
        inner = self.occupied.copy()
        for axis in range(3):
            for step in (1, -1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return (np.argwhere(self.occupied & ~inner) + 0.5) * self.pitch + self.low

    def extent(self) -> NDArray[np.float64]:
        """(3,) sides of the bounding box of the occupied cells; zeros for an empty hull."""
        cells = np.argwhere(self.occupied)
        return (np.ptp(cells, axis=0) + 1) * self.pitch if len(cells) else np.zeros(3)


def carve(
    masks: NDArray[np.uint8],
    cameras: Cameras,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    cells: int,
    misses: int,
) -> Hull:
    """The cells of a box whose centres at most `misses` views see outside their mask.

    Args:
        masks: (K, S, S), 1 inside the object.
        cameras: K cameras for images of S pixels.
        low: (3,) lower corner of the box.
        high: (3,) upper corner.
        cells: Number of cells in all, about.
        misses: Views that may disagree, as noise makes them do.
    """
    sides = np.maximum(high - low, 1e-6)
    pitch = float((sides.prod() / cells) ** (1 / 3))
    shape = np.maximum(1, np.ceil(sides / pitch)).astype(np.int64)
    start = (low + high) / 2 - shape * pitch / 2
    occupied = np.zeros(tuple(shape), dtype=np.bool_)
    _carve(masks, cameras.viewmats.astype(np.float64), cameras.focal, start, pitch, misses, occupied)
    return Hull(occupied, start, pitch)


def silhouettes(hull: Hull, cameras: Cameras) -> NDArray[np.uint8]:
    """The hull's own masks, (K, S, S)."""
    result = np.zeros((len(cameras), cameras.size, cameras.size), dtype=np.uint8)
    _silhouettes(hull.surface(), cameras.viewmats.astype(np.float64), cameras.focal, hull.pitch, result)
    return result


def colour_disagreement(hull: Hull, cameras: Cameras, rgb: FloatArray, masks: NDArray[np.uint8]) -> float:
    """How differently the views colour the same points of the hull's surface.

    Args:
        hull: The hull.
        cameras: K cameras for images of S pixels.
        rgb: (K, S, S, 3) in [0, 1].
        masks: (K, S, S), 1 where colours count.

    Returns:
        Root mean square deviation from each point's mean colour over the views that see it, in [0, 1]; 1 if no point
        is seen twice.
    """
    points = hull.surface()
    V = cameras.viewmats.astype(np.float64)
    depth = np.full((len(cameras), cameras.size, cameras.size), np.inf)
    _depth(points, V, cameras.focal, hull.pitch, depth)
    sums = np.zeros((len(points), 2))
    _spread(points, V, cameras.focal, 1.5 * hull.pitch, rgb, masks, depth, sums)
    squares, freedom = sums.sum(axis=0)
    return math.sqrt(squares / freedom / 3) if freedom > 0 else 1.0


@njit(cache=True, inline="always")
def _covered(centre, half_width, size):  # type: ignore[no-untyped-def]
    """First and last pixel whose centre lies under the footprint, or the one that holds its centre."""
    first = min(math.ceil(centre - half_width - 0.5), math.floor(centre))
    last = max(math.floor(centre + half_width - 0.5), math.floor(centre))
    return max(first, 0), min(last, size - 1)


@njit(parallel=True, fastmath=True, cache=True)
def _carve(masks, V, f, low, pitch, misses, occupied):  # type: ignore[no-untyped-def]
    views, size, _ = masks.shape
    for i in prange(occupied.shape[0]):
        x = low[0] + (i + 0.5) * pitch
        for j in range(occupied.shape[1]):
            y = low[1] + (j + 0.5) * pitch
            for k in range(occupied.shape[2]):
                z = low[2] + (k + 0.5) * pitch
                missed = 0
                for view in range(views):
                    u, v, d = project_point(V[view], f, size / 2, x, y, z)
                    outside = d <= 0 or u < 0 or v < 0 or u >= size or v >= size
                    if outside or masks[view, int(v), int(u)] == 0:
                        missed += 1
                        if missed > misses:
                            break
                occupied[i, j, k] = missed <= misses


@njit(parallel=True, fastmath=True, cache=True)
def _silhouettes(points, V, f, pitch, result):  # type: ignore[no-untyped-def]
    size = result.shape[1]
    for view in prange(V.shape[0]):
        for p in range(points.shape[0]):
            u, v, d = project_point(V[view], f, size / 2, points[p, 0], points[p, 1], points[p, 2])
            half_width = 0.5 * pitch * f / d
            left, right = _covered(u, half_width, size)
            top, bottom = _covered(v, half_width, size)
            result[view, top : bottom + 1, left : right + 1] = 1


@njit(parallel=True, cache=True)
def _depth(points, V, f, pitch, depth):  # type: ignore[no-untyped-def]
    size = depth.shape[1]
    for view in prange(V.shape[0]):
        for p in range(points.shape[0]):
            u, v, d = project_point(V[view], f, size / 2, points[p, 0], points[p, 1], points[p, 2])
            half_width = 0.6 * pitch * f / d
            left, right = _covered(u, half_width, size)
            top, bottom = _covered(v, half_width, size)
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    depth[view, row, column] = min(depth[view, row, column], d)


@njit(parallel=True, cache=True)
def _spread(points, V, f, slack, rgb, masks, depth, sums):  # type: ignore[no-untyped-def]
    views, size = depth.shape[:2]
    for p in prange(points.shape[0]):
        seen = 0
        squares = 0.0
        total = np.zeros(3)
        for view in range(views):
            u, v, d = project_point(V[view], f, size / 2, points[p, 0], points[p, 1], points[p, 2])
            if u < 0.5 or v < 0.5 or u >= size - 0.5 or v >= size - 0.5:
                continue
            if d > depth[view, int(v), int(u)] + slack:
                continue
            column, row = int(u - 0.5), int(v - 0.5)
            if not (
                masks[view, row, column]
                and masks[view, row, column + 1]
                and masks[view, row + 1, column]
                and masks[view, row + 1, column + 1]
            ):
                continue
            a, b = u - 0.5 - column, v - 0.5 - row
            seen += 1
            for c in range(3):
                upper = (1 - a) * rgb[view, row, column, c] + a * rgb[view, row, column + 1, c]
                lower = (1 - a) * rgb[view, row + 1, column, c] + a * rgb[view, row + 1, column + 1, c]
                value = (1 - b) * upper + b * lower
                squares += value * value
                total[c] += value
        if seen >= 2:
            sums[p, 0] = max(0.0, squares - (total * total).sum() / seen)
            sums[p, 1] = seen - 1
