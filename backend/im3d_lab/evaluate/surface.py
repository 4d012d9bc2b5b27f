"""How close a mesh is to the true surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

FloatArray = NDArray[np.float32]

# Dense enough that the nearest sample of a surface stands for its nearest point; distances are taken from fewer.
SAMPLES = 400_000
QUERIES = 60_000
# The object's longest side is 1: a point is right within one per cent of it.
THRESHOLD = 0.01
# Directions and depth map of the test of what can be seen from outside.
DIRECTIONS = 42
DEPTH_MAP = 96


@dataclass(frozen=True)
class Points:
    """Points on a surface.

    Attributes:
        positions: (N, 3).
        normals: (N, 3), unit length; the sign is not used.
    """

    positions: FloatArray
    normals: FloatArray

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        return Points(self.positions[rows], self.normals[rows])


def compare_surfaces(
    mesh: tuple[FloatArray, NDArray[np.int32]], truth: tuple[FloatArray, NDArray[np.int32]], seed: int = 0
) -> dict[str, float]:
    """Distances between what can be seen of two surfaces from outside.

    Props are full of faces that nobody sees (drawers, overlapping parts); no picture tells them, so both surfaces are
    reduced to the points that some direction sees first.

    Args:
        mesh: Vertices (V, 3) and faces (F, 3), in the world, where the true object's longest side is 1.
        truth: Likewise.
        seed: Of the samples.

    Returns:
        The entries of `compare_points`.
    """
    a, b = (exterior(sample_surface(*surface, SAMPLES, seed + i)) for i, surface in enumerate((mesh, truth)))
    return compare_points(a, b)


def compare_points(mesh: Points, truth: Points, threshold: float = THRESHOLD) -> dict[str, float]:
    """Distances between two sampled surfaces.

    Returns:
        chamfer: Mean of `accuracy` and `completeness`.
        accuracy: Mean distance from the mesh to the truth.
        completeness: Mean distance from the truth to the mesh.
        fscore: Harmonic mean of the shares of points of each within `threshold` of the other.
        normal_consistency: Mean |cos| of the angle between normals of nearest points, both ways.
    """
    from_mesh, from_truth = _thinned(mesh), _thinned(truth)
    to_truth, nearest_truth = cKDTree(truth.positions).query(from_mesh.positions)
    to_mesh, nearest_mesh = cKDTree(mesh.positions).query(from_truth.positions)
    precision, recall = float((to_truth <= threshold).mean()), float((to_mesh <= threshold).mean())
    cosines = [
        np.abs((from_mesh.normals * truth.normals[nearest_truth]).sum(axis=1)).mean(),
        np.abs((from_truth.normals * mesh.normals[nearest_mesh]).sum(axis=1)).mean(),
    ]
    return {
        "chamfer": float(to_truth.mean() + to_mesh.mean()) / 2,
        "accuracy": float(to_truth.mean()),
        "completeness": float(to_mesh.mean()),
        "fscore": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "normal_consistency": float(np.mean(cosines)),
    }


def sample_surface(vertices: FloatArray, faces: NDArray[np.int32], count: int, seed: int) -> Points:
    """Points spread evenly by area.

    Raises:
        ValueError: The surface has no area.
    """
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.linalg.norm(normals, axis=1)
    if not areas.sum() > 0:
        raise ValueError("the surface has no area")
    rng = np.random.default_rng(seed)
    face = rng.choice(len(faces), count, p=areas / areas.sum())
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    a, b, c = corners[face].transpose(1, 0, 2)
    positions = a + u * (b - a) + v * (c - a)
    return Points(positions.astype(np.float32), (normals[face] / areas[face, None]).astype(np.float32))


def exterior(points: Points) -> Points:
    """The points that are the first along some of `DIRECTIONS` directions, spread evenly over the sphere.

    A depth map of the points themselves decides: dense samples hide what lies more than a pixel and a half behind.
    """
    positions = points.positions.astype(np.float64)
    centre = (positions.max(axis=0) + positions.min(axis=0)) / 2
    reach = float(np.linalg.norm(positions - centre, axis=1).max())
    pixel = 2 * reach / (DEPTH_MAP - 1)
    seen = np.zeros(len(positions), dtype=bool)
    for direction in _directions(DIRECTIONS):
        side = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
        side /= np.linalg.norm(side)
        axes = np.stack([side, np.cross(direction, side), direction])
        x, y, depth = ((positions - centre) @ axes.T).T
        cell = np.rint((x + reach) / pixel).astype(np.int64) * DEPTH_MAP + np.rint((y + reach) / pixel).astype(np.int64)
        nearest = np.full(DEPTH_MAP * DEPTH_MAP, np.inf)
        np.minimum.at(nearest, cell, depth)
        seen |= depth <= nearest[cell] + 1.5 * pixel
    return points[seen]


def _directions(count: int) -> NDArray[np.float64]:
    """(count, 3) unit vectors on a Fibonacci spiral."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    angle = np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def _thinned(points: Points) -> Points:
    count = len(points.positions)
    if count <= QUERIES:
        return points
    return points[np.random.default_rng(0).choice(count, QUERIES, replace=False)]
