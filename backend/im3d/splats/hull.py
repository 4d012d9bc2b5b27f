"""Points on the silhouettes' visual hull: where a fit starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from im3d.errors import InputError
from im3d.images import OrbitViews

FloatArray = NDArray[np.float32]
GRID = 96
# A view may miss the object by a pixel or be a little inconsistent: this share of the views may disagree.
MISSES = 0.1


def hull_bounds(views: OrbitViews) -> float:
    """Half side of a cube about the origin that holds everything the cameras can see of an object at the origin."""
    half_view = 0.5 * views.size / views.orbit.cameras(views.size).focal
    return float(min(views.orbit.radius * half_view * 1.05, views.orbit.radius * 0.9))


def hull_points(views: OrbitViews, count: int, seed: int) -> tuple[FloatArray, FloatArray, float]:
    """Random points in the outer shell of the visual hull and their mean projected colours.

    Args:
        views: With known elevation.
        count: Points wanted; fewer when the hull is tiny.
        seed: Of the choice and the jitter.

    Returns:
        Positions (n, 3), colours (n, 3) in [0, 1], and the spacing of the grid they came from.

    Raises:
        InputError: The silhouettes have no common volume.
    """
    random = np.random.default_rng(seed)
    half = hull_bounds(views)
    for _ in range(2):  # the second time on the box that the first one found
        axis = np.linspace(-half, half, GRID, dtype=np.float32)
        inside = _inside(views, axis)
        occupied = np.argwhere(inside)
        if len(occupied) < 8:
            raise InputError(
                "The silhouettes of the views have no common volume.",
                "Check the masks, the elevation and the order of the views.",
            )
        half = float(np.abs(axis[occupied]).max()) + 2 * float(axis[1] - axis[0])
    spacing = float(axis[1] - axis[0])
    padded = np.pad(inside, 1)
    core = inside.copy()
    for shift_axis in range(3):
        for shift in (-1, 1):
            core &= np.roll(padded, shift, shift_axis)[1:-1, 1:-1, 1:-1]
    shell = np.argwhere(inside & ~core)
    chosen = (
        shell[random.permutation(len(shell))[:count]]
        if len(shell) >= count
        else shell[random.integers(0, len(shell), count)]
    )
    points = axis[chosen] + random.uniform(-0.5, 0.5, chosen.shape).astype(np.float32) * spacing
    return points, _colors(views, points), spacing


def _inside(views: OrbitViews, axis: FloatArray) -> NDArray[np.bool_]:
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    misses = np.zeros(len(grid), np.int16)
    for k in range(len(views.rgba)):
        columns, rows = _pixels(views, k, grid)
        misses += views.rgba[k, rows, columns, 3] < 0.3
    allowed = int(MISSES * len(views.rgba)) if len(views.rgba) >= 8 else 0
    return (misses <= allowed).reshape((len(axis),) * 3)


def _colors(views: OrbitViews, points: FloatArray) -> FloatArray:
    total = np.full((len(points), 3), 0.5e-3)
    weight = np.full((len(points), 1), 1e-3)
    for k in range(len(views.rgba)):
        columns, rows = _pixels(views, k, points)
        pixel = views.rgba[k, rows, columns]
        total += pixel[:, :3] * pixel[:, 3:]
        weight += pixel[:, 3:]
    return np.clip(total / weight, 0.0, 1.0).astype(np.float32)


def _pixels(views: OrbitViews, k: int, points: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    xy = views.orbit.cameras(views.size)[k].project(points)[0, :, :2]
    indices = np.clip(np.floor(xy), 0, views.size - 1).astype(np.int64)
    return indices[:, 0], indices[:, 1]
