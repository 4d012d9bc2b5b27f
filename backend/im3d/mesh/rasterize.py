"""A small z-buffer for meshes: which face each pixel shows, where on it, how deep. For screens and UV atlases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from im3d.core.orbit import Cameras

FloatArray = NDArray[np.float32]
FAR = 1e9


@dataclass(frozen=True)
class MeshBuffers:
    """What each pixel of an image shows.

    Attributes:
        face: (S, S) int32 index of the nearest face, −1 where there is none.
        weights: (S, S, 3) barycentric weights on it, perspective-correct.
        depth: (S, S) float64, `FAR` where there is nothing.
    """

    face: NDArray[np.int32]
    weights: FloatArray
    depth: NDArray[np.float64]

    def interpolate(self, values: NDArray[Any], faces: NDArray[np.int32]) -> NDArray[np.float64]:
        """Vertex values (V, C) at the covered pixels, in row order: (P, C)."""
        covered = self.face >= 0
        corners = values[faces[self.face[covered]]]
        result: NDArray[np.float64] = np.einsum("pk,pkc->pc", self.weights[covered].astype(np.float64), corners)
        return result


def to_screen(vertices: FloatArray, cameras: Cameras, index: int, scale: int = 1) -> NDArray[np.float64]:
    """(V, 3): pixel coordinates in an image `scale` times as large as the camera's, and depth."""
    screen: NDArray[np.float64] = cameras[index].project(vertices)[0]
    screen[:, :2] *= scale
    return screen


def rasterize_mesh(screen: NDArray[np.float64], faces: NDArray[np.int32], size: int) -> MeshBuffers:
    """Rasterises triangles given in pixel coordinates and depth, front and back faces alike.

    Args:
        screen: (V, 3) x, y in pixels (centres at +0.5), z > 0.
        faces: (F, 3).
        size: Image side.
    """
    face = np.full((size, size), -1, np.int32)
    weights = np.zeros((size, size, 3), np.float32)
    depth = np.full((size, size), FAR)
    _rasterize(np.ascontiguousarray(screen, np.float64), faces, size, face, weights, depth)
    return MeshBuffers(face, weights, depth)


@njit(nogil=True, fastmath=True, cache=True)
def _rasterize(P, faces, size, face, weights, depth):  # type: ignore[no-untyped-def]
    for t in range(len(faces)):
        a = faces[t, 0]
        b = faces[t, 1]
        c = faces[t, 2]
        if P[a, 2] <= 0.0 or P[b, 2] <= 0.0 or P[c, 2] <= 0.0:
            continue
        x0 = P[a, 0]
        y0 = P[a, 1]
        x1 = P[b, 0]
        y1 = P[b, 1]
        x2 = P[c, 0]
        y2 = P[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0.0:
            continue
        left = max(0, math.floor(min(x0, min(x1, x2)) - 0.5))
        right = min(size - 1, math.ceil(max(x0, max(x1, x2)) - 0.5))
        top = max(0, math.floor(min(y0, min(y1, y2)) - 0.5))
        bottom = min(size - 1, math.ceil(max(y0, max(y1, y2)) - 0.5))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px = x + 0.5
                py = y + 0.5
                w1 = ((px - x0) * (y2 - y0) - (x2 - x0) * (py - y0)) / area
                w2 = ((x1 - x0) * (py - y0) - (px - x0) * (y1 - y0)) / area
                w0 = 1.0 - w1 - w2
                if w0 < -1e-6 or w1 < -1e-6 or w2 < -1e-6:
                    continue
                k0 = w0 / P[a, 2]
                k1 = w1 / P[b, 2]
                k2 = w2 / P[c, 2]
                z = 1.0 / (k0 + k1 + k2)
                if z < depth[y, x]:
                    depth[y, x] = z
                    face[y, x] = t
                    weights[y, x, 0] = k0 * z
                    weights[y, x, 1] = k1 * z
                    weights[y, x, 2] = k2 * z
