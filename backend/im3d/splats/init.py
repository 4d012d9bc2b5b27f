"""Points on the silhouettes' visual hull: where a fit starts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from im3d.core.images import OrbitViews
from im3d.errors import InputError
from im3d.views.visual_hull import Hull, carve

FloatArray = NDArray[np.float32]
# Cells of the first grid, over all that the cameras see, and of the second, over the box that the first one found.
COARSE_CELLS, FINE_CELLS = 64**3, 96**3
# A fine hull of fewer cells is not used: they lie between the pixels.
LEAST_CELLS = 64
LEAST_ALPHA = 0.3
# A view may miss the object by a pixel or be a little inconsistent: this share of the views may disagree.
MISSES = 0.1


def hull_points(views: OrbitViews, count: int, seed: int) -> tuple[FloatArray, FloatArray, float]:
    """Random points in the outer shell of the visual hull and their mean projected colours.

    Args:
        views: With known elevation.
        count: Number of points.
        seed: Of the random choice of cells and the jitter within them.

    Returns:
        Positions (count, 3) in world units, colours (count, 3) in [0, 1], and the mean spacing in world units.

    Raises:
        InputError: The silhouettes have no common volume.
    """
    random = np.random.default_rng(seed)
    half = _visible_half_side(views)
    hull = _carved(views, np.full(3, -half), np.full(3, half), COARSE_CELLS, widened=True)
    if not hull.occupied.any():
        raise InputError(
            "The silhouettes of the views have no common volume.",
            "Check the masks, the elevation and the order of the views.",
        )
    inside = hull.points()
    fine = _carved(views, inside.min(axis=0) - hull.pitch, inside.max(axis=0) + hull.pitch, FINE_CELLS, widened=False)
    if int(fine.occupied.sum()) >= LEAST_CELLS:
        hull = fine
    shell = hull.surface()
    chosen = random.permutation(len(shell))[:count] if len(shell) >= count else random.integers(0, len(shell), count)
    jitter = random.uniform(-0.5, 0.5, (count, 3)) * hull.pitch
    points = (shell[chosen] + jitter).astype(np.float32)
    return points, _colors(views, points), hull.pitch * max(1.0, math.sqrt(len(shell) / count))


def _carved(views: OrbitViews, low: NDArray[np.float64], high: NDArray[np.float64], cells: int, widened: bool) -> Hull:
    """The hull in a box; `widened`: of masks grown by half a cell, so that a part thinner than a cell is not lost."""
    cameras = views.orbit.cameras(views.size)
    masks = (views.rgba[..., 3] > LEAST_ALPHA).astype(np.uint8)
    if widened:
        pitch = float(((high - low).prod() / cells) ** (1 / 3))
        reach = math.ceil(0.5 * pitch * cameras.focal / views.orbit.radius)
        masks = maximum_filter(masks, size=(1, 2 * reach + 1, 2 * reach + 1))
    misses = int(MISSES * len(masks)) if len(masks) >= 8 else 0
    return carve(masks, cameras, low, high, cells, misses)


def _visible_half_side(views: OrbitViews) -> float:
    """Half side of a cube about the origin that holds everything the cameras can see of an object at the origin."""
    half_view = 0.5 * views.size / views.orbit.cameras(views.size).focal
    return min(views.orbit.radius * half_view * 1.05, views.orbit.radius * 0.9)


def _colors(views: OrbitViews, points: FloatArray) -> FloatArray:
    total = np.full((len(points), 3), 0.5e-3)
    weight = np.full((len(points), 1), 1e-3)
    pixels = views.orbit.cameras(views.size).project(points)[..., :2]
    pixels = np.clip(np.floor(pixels), 0, views.size - 1).astype(np.int64)
    for rgba, (columns, rows) in zip(views.rgba, np.moveaxis(pixels, 2, 1), strict=True):
        pixel = rgba[rows, columns]
        total += pixel[:, :3] * pixel[:, 3:]
        weight += pixel[:, 3:]
    return np.clip(total / weight, 0.0, 1.0).astype(np.float32)
