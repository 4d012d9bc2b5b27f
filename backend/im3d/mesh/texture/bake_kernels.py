"""The loops of `bake` over texels and pixels, compiled: each visits a texel or pixel once.

No loop takes a slice of an array or makes one: numba counts references to it, and threads that count one thing wait for
each other.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from im3d.core.projection import project_point


@njit(nogil=True, cache=True)
def depth_edges(depth, limit):  # type: ignore[no-untyped-def]
    """Nearest depth of the 3 × 3 pixels about each, and where the farthest of them is more than `limit` behind it.

    On one core, and any thread may call it.

    Args:
        depth: (S, S) float64.
        limit: World units.

    Returns:
        (S, S) float32 and (S, S) bool.
    """
    size = len(depth)
    nearest = np.empty((size, size), np.float32)
    edge = np.empty((size, size), np.bool_)
    for y in range(size):
        for x in range(size):
            low = depth[y, x]
            high = low
            for j in range(max(0, y - 1), min(size, y + 2)):
                for i in range(max(0, x - 1), min(size, x + 2)):
                    low = min(low, depth[j, i])
                    high = max(high, depth[j, i])
            nearest[y, x] = low
            edge[y, x] = high - low > limit
    return nearest, edge


@njit(parallel=True, cache=True)
def view_weights(  # type: ignore[no-untyped-def]
    positions, normals, viewmat, focal, centre, nearest, edge, alpha, scale, slack, grazing_slack, grazing, power, guard
):  # fmt: skip
    """The weight of one view for each texel, 0 where the texel is hidden.

    Args:
        positions, normals: (T, 3) of the texels, in the world.
        viewmat, focal, centre: (4, 4), number and (3,) of the camera.
        nearest, edge: Of `depth_edges`, (scale·S, scale·S).
        alpha: (S, S) the view's coverage.
        scale: Of the depth buffer.
        slack, grazing_slack: World units that a visible texel may lie behind the buffer, and more at grazing angles.
        grazing: Cosine below which a view does not count.
        power: Of the cosine.
        guard: Pixels from a depth edge at which a view counts fully.

    Returns:
        (T,) float32.
    """
    count, size, half = len(positions), len(nearest), 0.5 * len(alpha)
    reach = math.ceil(guard * scale) - 1  # further away it is `guard` or more
    weight = np.zeros(count, np.float32)
    coverage = alpha[:, :, np.newaxis]
    for t in prange(count):
        x = centre[0] - positions[t, 0]
        y = centre[1] - positions[t, 1]
        z = centre[2] - positions[t, 2]
        cosine = x * normals[t, 0] + y * normals[t, 1] + z * normals[t, 2]
        cosine /= math.sqrt(x * x + y * y + z * z)
        if cosine <= grazing:
            continue
        u, v, depth = project_point(viewmat, focal, half, positions[t, 0], positions[t, 1], positions[t, 2])
        column = min(max(int(u * scale), 0), size - 1)
        row = min(max(int(v * scale), 0), size - 1)
        if depth - nearest[row, column] >= slack + grazing_slack / cosine:
            continue
        closest = (guard * scale) ** 2
        for j in range(max(0, row - reach), min(size, row + reach + 1)):
            for i in range(max(0, column - reach), min(size, column + reach + 1)):
                if edge[j, i]:
                    closest = min(closest, float((j - row) ** 2 + (i - column) ** 2))
        trust = min(max(math.sqrt(closest) / scale / guard, 0.02), 1.0)
        solid = min(max((_bilinear(coverage, u, v, 0) - 0.3) / 0.6, 0.0), 1.0)
        weight[t] = cosine**power * trust * solid
    return weight


@njit(parallel=True, cache=True)
def add_weighted(total, weight, positions, viewmat, focal, picture):  # type: ignore[no-untyped-def]
    """Adds to total (T, 3) what a camera's picture (S, S, 3) shows of positions (T, 3), times the weight (T,)."""
    half = 0.5 * len(picture)
    for t in prange(len(weight)):
        if weight[t] > 0:
            u, v, _ = project_point(viewmat, focal, half, positions[t, 0], positions[t, 1], positions[t, 2])
            for c in range(3):
                total[t, c] += weight[t] * _bilinear(picture, u, v, c)


@njit(parallel=True, cache=True)
def missing(texture, face, weights, faces, uv, picture, alpha, scale):  # type: ignore[no-untyped-def]
    """(S, S, 3) what a textured mesh lacks in a picture, 0 where one of the two is not solid.

    Args:
        texture: (N, N, 3).
        face, weights: Of the mesh's buffers, at `scale` times the picture's resolution.
        faces, uv: The atlas.
        picture, alpha: (S, S, 3) and (S, S).
        scale: Whole number.
    """
    size, n = len(picture), len(texture)
    lacking = np.zeros((size, size, 3), np.float32)
    for y in prange(size):
        for x in range(size):
            if alpha[y, x] <= 0.99:
                continue
            solid = True
            red, green, blue = 0.0, 0.0, 0.0
            for j in range(y * scale, (y + 1) * scale):
                for i in range(x * scale, (x + 1) * scale):
                    shown = face[j, i]
                    if shown < 0:
                        solid = False
                        continue
                    u = 0.0
                    v = 0.0
                    for k in range(3):
                        corner = faces[shown, k]
                        u += weights[j, i, k] * uv[corner, 0]
                        v += weights[j, i, k] * uv[corner, 1]
                    red += _bilinear(texture, u * n, v * n, 0)
                    green += _bilinear(texture, u * n, v * n, 1)
                    blue += _bilinear(texture, u * n, v * n, 2)
            if solid:
                lacking[y, x, 0] = picture[y, x, 0] - red / (scale * scale)
                lacking[y, x, 1] = picture[y, x, 1] - green / (scale * scale)
                lacking[y, x, 2] = picture[y, x, 2] - blue / (scale * scale)
    return lacking


@njit(inline="always")
def _bilinear(image, x, y, c):  # type: ignore[no-untyped-def]
    """One channel of (H, W, C) at pixel coordinates (centres at +0.5), clamped at the border."""
    height, width = image.shape[0], image.shape[1]
    u = min(max(x - 0.5, 0.0), width - 1.001)
    v = min(max(y - 0.5, 0.0), height - 1.001)
    i, j = int(u), int(v)
    a, b = u - i, v - j
    top = image[j, i, c] * (1 - a) + image[j, i + 1, c] * a
    bottom = image[j + 1, i, c] * (1 - a) + image[j + 1, i + 1, c] * a
    return top * (1 - b) + bottom * b
