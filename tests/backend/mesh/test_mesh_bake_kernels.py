"""The compiled loops of texture baking against whole-array formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates, maximum_filter, minimum_filter

from im3d.core.orbit import Cameras, Orbit
from im3d.mesh.texture import bake_kernels

RNG = np.random.default_rng(0)
SIZE, SCALE = 24, 2


def steps(size: int) -> NDArray[np.float64]:
    """A depth map of a few level plates."""
    return np.kron(RNG.integers(0, 3, (size // 8, size // 8)) * 0.1 + 1.0, np.ones((8, 8)))


def bilinear(image: NDArray[np.float32], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    place = np.clip(xy[:, ::-1].T - 0.5, 0, len(image) - 1)
    found: NDArray[np.float64] = map_coordinates(image.astype(np.float64), place, order=1)
    return found


def unprojected(camera: Cameras, screen: NDArray[np.float64]) -> NDArray[np.float64]:
    """World positions of pixel coordinates and depths (P, 3)."""
    at = (screen[:, :2] - camera.size / 2) / camera.focal * screen[:, 2:]
    V = camera.viewmats[0].astype(np.float64)
    points: NDArray[np.float64] = (np.column_stack([at, screen[:, 2]]) - V[:3, 3]) @ V[:3, :3]
    return points


def test_edges_are_where_neighbours_differ() -> None:
    depth = steps(48)
    nearest, edge = bake_kernels.depth_edges(depth, 0.03)
    np.testing.assert_allclose(nearest, minimum_filter(depth, 3), rtol=1e-6)
    np.testing.assert_array_equal(edge, maximum_filter(depth, 3) - minimum_filter(depth, 3) > 0.03)
    assert 0.05 < edge.mean() < 0.6


@pytest.mark.parametrize("guard", [2.0, 3.5])
def test_weights_of_a_view(guard: float) -> None:
    depth = steps(SIZE * SCALE)
    nearest, edge = bake_kernels.depth_edges(depth, 0.03)
    count = 4000
    camera = Orbit.uniform(16, 20.0).cameras(SIZE)[3]
    centre = camera.centres[0]
    screen = np.column_stack([RNG.uniform(0.5, SIZE - 0.6, (count, 2)), RNG.uniform(0.98, 1.25, count)])
    positions = unprojected(camera, screen)
    normals = RNG.normal(size=(count, 3)) + centre / np.linalg.norm(centre)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    alpha = RNG.uniform(0, 1.2, (SIZE, SIZE)).clip(0, 1).astype(np.float32)
    weight = bake_kernels.view_weights(
        positions, normals, camera.viewmats[0], camera.focal, centre, nearest, edge, alpha, SCALE,
        0.006, 0.004, 0.1, 2.0, guard,
    )  # fmt: skip

    toward = centre - positions
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    cosine = (toward * normals).sum(axis=1)
    column, row = (np.clip((screen[:, i] * SCALE).astype(int), 0, SIZE * SCALE - 1) for i in range(2))
    slack = 0.006 + 0.004 / np.maximum(cosine, 0.1)
    expected = np.where((screen[:, 2] - nearest[row, column] < slack) & (cosine > 0.1), np.maximum(cosine, 0) ** 2, 0)
    away = distance_transform_edt(~edge) / SCALE
    expected *= np.clip(away[row, column] / guard, 0.02, 1) * np.clip(
        (bilinear(alpha, screen[:, :2]) - 0.3) / 0.6, 0, 1
    )
    assert 0.1 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(weight, expected, atol=1e-5)


def test_what_a_texture_lacks_in_a_picture() -> None:
    """A square of two triangles fills all but a margin of the view, and half of the texture."""
    texture = RNG.random((32, 32, 3)).astype(np.float32)
    picture = RNG.random((SIZE, SIZE, 3)).astype(np.float32)
    alpha = (RNG.random((SIZE, SIZE)) > 0.2).astype(np.float32)
    uv = np.array([[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    fine = SIZE * SCALE
    place = (np.stack(np.meshgrid(np.arange(fine), np.arange(fine)), axis=-1) + 0.5) / fine  # x, y
    x, y = place[..., 0], place[..., 1]
    face = np.where(x >= y, 0, 1).astype(np.int32)
    weights = np.where((face == 0)[..., None], np.stack([1 - x, x - y, y], -1), np.stack([1 - y, x, y - x], -1))
    face[:5] = -1
    lacking = bake_kernels.missing(texture, face, weights.astype(np.float32), faces, uv, picture, alpha, SCALE)

    shown = np.stack([bilinear(texture[..., c], place.reshape(-1, 2) * 16).reshape(fine, fine) for c in range(3)], -1)
    mean = shown.reshape(SIZE, SCALE, SIZE, SCALE, 3).mean(axis=(1, 3))
    solid = (alpha > 0.99) & (np.arange(SIZE) >= 3)[:, None]
    np.testing.assert_allclose(lacking, np.where(solid[..., None], picture - mean, 0), atol=1e-5)


def test_weighted_colours_add_up() -> None:
    picture = RNG.random((SIZE, SIZE, 3)).astype(np.float32)
    weight = RNG.random(300).astype(np.float32)
    camera = Orbit.uniform(16, 20.0).cameras(SIZE)[3]
    screen = np.column_stack([RNG.uniform(1, SIZE - 1, (300, 2)), RNG.uniform(1.5, 2.5, 300)])
    weight[:50] = 0
    total = np.ones((300, 3), np.float32)
    positions = unprojected(camera, screen)
    bake_kernels.add_weighted(total, weight, positions, camera.viewmats[0], camera.focal, picture)
    expected = 1 + weight[:, None] * np.stack([bilinear(picture[..., c], screen[:, :2]) for c in range(3)], axis=1)
    np.testing.assert_allclose(total, expected, atol=1e-5)
