"""A test object whose surface is known exactly: a textured sphere with a handle, a foot, a thin rod and a cavity.

It conforms to the conventions of `im3d.core.orbit`: centred bounding box, longest side 1, the cavity at the front (−Y),
the handle at +X. Genus 1, one component. Its distance is exact away from the blends (of radius 0.06) and never larger
in magnitude than the true one by more than rounding near the surface, so |signed_distance| is the error of a mesh.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras, Orbit, look_at_origin

GENUS = 1
FOV_DEG, RADIUS = 40.0, 2.0  # the default 33.8° would cut the foot
# The shape is written in its own frame; the world's unit is its height there, and its box is not centred there.
UNIT = 1.07
CENTRE = (0.1225, 0.0, 0.09)
HIT = 1e-4
MAX_STEPS, MAX_DISTANCE = 200, 4.0


def signed_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance (negative inside) of world points (N, 3): (N,)."""
    return _distances(np.ascontiguousarray(points, np.float64))


def normals(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outward unit normals (N, 3) of the level set through world points (N, 3)."""
    gradient = np.empty(np.shape(points))
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-4
        gradient[:, axis] = signed_distance(points + step) - signed_distance(points - step)
    return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


@functools.cache
def orbit_views(size: int, count: int = 16, elevation_deg: float = 15.0) -> OrbitViews:
    """The views of a uniform orbit, antialiased, diffusely lit from a fixed light."""
    orbit = Orbit.uniform(count, elevation_deg, FOV_DEG, RADIUS)
    return OrbitViews(render(orbit.cameras(size)), orbit)


@functools.cache
def novel_views(size: int, angles_deg: tuple[tuple[float, float], ...]) -> tuple[Cameras, NDArray[np.float32]]:
    """Cameras at (azimuth, elevation) pairs, and what they see: (C, S, S, 4)."""
    viewmats = np.stack([look_at_origin(a, e, RADIUS) for a, e in angles_deg])
    cameras = Cameras(viewmats, Orbit.uniform(2, 0.0, FOV_DEG, RADIUS).cameras(size).focal, size)
    return cameras, render(cameras)


def render(cameras: Cameras, samples: int = 3) -> NDArray[np.float32]:
    """Sphere-traced pictures (C, S, S, 4), straight alpha, `samples`² rays a pixel."""
    pictures = np.empty((len(cameras), cameras.size, cameras.size, 4), np.float32)
    for picture, V in zip(pictures, cameras.viewmats.astype(np.float64), strict=True):
        _trace(V[:3, :3].copy(), -V[:3, :3].T @ V[:3, 3], cameras.focal, samples, picture)
    return pictures


@njit(inline="always")
def _smooth_min(a, b, k):  # type: ignore[no-untyped-def]
    h = max(k - abs(a - b), 0.0) / k
    return min(a, b) - h * h * k * 0.25


@njit(cache=True)
def _distance(wx, wy, wz):  # type: ignore[no-untyped-def]
    x = wx * UNIT + CENTRE[0]
    y = wy * UNIT + CENTRE[1]
    z = wz * UNIT + CENTRE[2]
    body = math.sqrt(x * x + y * y + z * z) - 0.32
    ring = math.sqrt((x - 0.36) ** 2 + z * z) - 0.16
    handle = math.sqrt(ring * ring + y * y) - 0.045
    bx = abs(x) - 0.22
    by = abs(y) - 0.22
    bz = abs(z + 0.38) - 0.05
    outside = math.sqrt(max(bx, 0.0) ** 2 + max(by, 0.0) ** 2 + max(bz, 0.0) ** 2)
    foot = outside + min(max(bx, max(by, bz)), 0.0) - 0.015
    along = min(max(z, 0.25), 0.6)
    rod = math.sqrt(x * x + y * y + (z - along) ** 2) - 0.025
    cavity = math.sqrt(x * x + (y + 0.36) ** 2 + (z - 0.05) ** 2) - 0.14
    solid = _smooth_min(_smooth_min(_smooth_min(body, handle, 0.05), foot, 0.06), rod, 0.03)
    return max(solid, -cavity) / UNIT


@njit(parallel=True, cache=True)
def _distances(points):  # type: ignore[no-untyped-def]
    result = np.empty(len(points))
    for i in prange(len(points)):
        result[i] = _distance(points[i, 0], points[i, 1], points[i, 2])
    return result


@njit(cache=True)
def _albedo(wx, wy, wz):  # type: ignore[no-untyped-def]
    x = wx * UNIT + CENTRE[0]
    y = wy * UNIT + CENTRE[1]
    z = wz * UNIT + CENTRE[2]
    if z > 0.33:
        return 0.9, 0.8, 0.2
    angle = math.atan2(y, x)
    checker = 1.0 if math.sin(12 * angle) * math.sin(22 * z) > 0 else 0.0
    if z < -0.30:
        return 0.55 + 0.2 * checker, 0.4 + 0.2 * checker, 0.25
    wave = 0.5 + 0.5 * math.sin(40 * z + 6 * math.sin(5 * angle))
    red = 0.85 * checker + 0.15 * (1 - checker) + 0.1 * wave
    return red, 0.35 + 0.4 * wave * (1 - checker) + 0.1 * checker, 0.25 + 0.55 * (1 - checker)


@njit(parallel=True, cache=True)
def _trace(R, eye, focal, samples, picture):  # type: ignore[no-untyped-def]
    size = picture.shape[0]
    for row in prange(size):
        for column in range(size):
            color = np.zeros(3)
            hits = 0
            for sample in range(samples * samples):
                u = (column + (sample % samples + 0.5) / samples - size / 2) / focal
                v = (row + (sample // samples + 0.5) / samples - size / 2) / focal
                ray = R[0] * u + R[1] * v + R[2]
                ray /= math.sqrt(u * u + v * v + 1)
                t = 0.8
                for _ in range(MAX_STEPS):
                    p = eye + t * ray
                    d = _distance(p[0], p[1], p[2])
                    if d < HIT or t > MAX_DISTANCE:
                        break
                    t += 0.9 * d
                if d >= HIT:
                    continue
                p = eye + t * ray
                e = 1e-4
                n = np.array(
                    [
                        _distance(p[0] + e, p[1], p[2]) - _distance(p[0] - e, p[1], p[2]),
                        _distance(p[0], p[1] + e, p[2]) - _distance(p[0], p[1] - e, p[2]),
                        _distance(p[0], p[1], p[2] + e) - _distance(p[0], p[1], p[2] - e),
                    ]
                )
                n /= math.sqrt((n * n).sum()) + 1e-12
                light = 0.45 + 0.55 * max(0.0, 0.3 * n[0] - 0.5 * n[1] + 0.81 * n[2])
                red, green, blue = _albedo(p[0], p[1], p[2])
                color += np.array([red, green, blue]) * light
                hits += 1
            for k in range(3):
                picture[row, column, k] = color[k] / max(hits, 1)
            picture[row, column, 3] = hits / (samples * samples)
