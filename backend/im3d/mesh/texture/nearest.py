"""Nearest neighbours of a texture's texels, by a grid of cells.

Not scipy's tree: it allocates memory for every point that it looks for, and threads that take it from one heap
(`memory.limit_malloc_arenas`) wait for each other; sixteen took twice as long as they do with heaps of their own.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from im3d.core.threads import on_all_cores

# Items of a surface fill about 2 (longest side / cell side)² cells; so many share one.
ITEMS_PER_CELL = 3
MOST_CELLS = 192  # along a side of the grid: 28 MB
CHUNK = 8192  # points that a core takes at once


def nearest_items(items: NDArray[np.floating], points: NDArray[np.floating], count: int) -> NDArray[np.int32]:
    """The items that are nearest to each point, nearest first, on all cores.

    Args:
        items: (N, D), D ≥ 3. The first three coordinates are places in the world, in which the items lie about a
            surface; others are compared like them.
        points: (P, D).
        count: Neighbours of each point, k.

    Returns:
        (P, min(k, N)) rows of `items`.

    Raises:
        ValueError: There are no items.
    """
    if not len(items):
        raise ValueError("There is nothing to be near to.")
    places = np.ascontiguousarray(items, np.float64)
    low = places[:, :3].min(axis=0)
    extent = places[:, :3].max(axis=0) - low
    side = max(float(extent.max()) * max((2 * ITEMS_PER_CELL / len(places)) ** 0.5, 1 / MOST_CELLS), 1e-9)
    shape = (extent / side).astype(np.int64) + 1
    cell = np.minimum(((places[:, :3] - low) / side).astype(np.int64), shape - 1)
    flat = (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
    order = np.argsort(flat, kind="stable").astype(np.int32)
    by_cell = places[order]
    starts = np.zeros(int(shape.prod()) + 1, np.int32)
    np.cumsum(np.bincount(flat, minlength=len(starts) - 1), out=starts[1:])
    queries = np.ascontiguousarray(points, np.float64)
    found = np.empty((len(queries), min(count, len(places))), np.int32)

    def look(first: int) -> None:
        rows = slice(first, first + CHUNK)
        _nearest(queries[rows], by_cell, order, starts, shape, low, side, found[rows])

    on_all_cores(look, range(0, len(queries), CHUNK))
    return found


@njit(nogil=True, cache=True)
def _nearest(points, places, order, starts, shape, low, side, found):  # type: ignore[no-untyped-def]
    """Cells about each point's, shell by shell, until the next shell is farther than what was found.

    Args:
        places, order: The items in the order of their cells, and which each was.
        starts: (cells + 1,) where each cell begins among them.
        found: (P, k) written.
    """
    count = found.shape[1]
    distances = np.empty(count)
    home = np.empty(3, np.int64)
    first = np.empty(3, np.int64)
    last = np.empty(3, np.int64)
    for p in range(len(points)):
        distances[:] = np.inf
        for axis in range(3):
            home[axis] = min(max(int((points[p, axis] - low[axis]) // side), 0), shape[axis] - 1)
        shell = 0
        while True:
            beyond = np.inf  # how far away everything is that no shell has reached yet
            for axis in range(3):
                first[axis] = max(home[axis] - shell, 0)
                last[axis] = min(home[axis] + shell, shape[axis] - 1)
                at = points[p, axis] - low[axis]
                if home[axis] - shell > 0:
                    beyond = min(beyond, at - (home[axis] - shell) * side)
                if home[axis] + shell < shape[axis] - 1:
                    beyond = min(beyond, (home[axis] + shell + 1) * side - at)
            for x in range(first[0], last[0] + 1):
                for y in range(first[1], last[1] + 1):
                    inner = abs(x - home[0]) < shell and abs(y - home[1]) < shell
                    # Inside the shell only its two ends are new.
                    step = max(2 * shell, 1) if inner else 1
                    z = home[2] - shell if inner else first[2]
                    while z <= last[2]:
                        if z >= 0:
                            cell = (x * shape[1] + y) * shape[2] + z
                            _keep_nearer(points, p, places, order, starts[cell], starts[cell + 1], distances, found)
                        z += step
            if distances[count - 1] <= beyond * beyond:
                break
            shell += 1


@njit(inline="always")
def _keep_nearer(points, p, places, order, begin, end, distances, found):  # type: ignore[no-untyped-def]
    """Puts the items of one cell among those found so far, which are sorted by squared distance."""
    count = len(distances)
    for i in range(begin, end):
        distance = 0.0
        for d in range(points.shape[1]):
            away = points[p, d] - places[i, d]
            distance += away * away
        if distance >= distances[count - 1]:
            continue
        k = count - 1
        while k > 0 and distances[k - 1] > distance:
            distances[k] = distances[k - 1]
            found[p, k] = found[p, k - 1]
            k -= 1
        distances[k] = distance
        found[p, k] = order[i]
