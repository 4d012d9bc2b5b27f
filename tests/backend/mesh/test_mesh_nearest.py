"""Nearest neighbours by cells, against scipy's tree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from im3d.mesh.texture import nearest
from im3d.mesh.texture.nearest import nearest_items


def sphere(count: int, seed: int) -> np.ndarray:
    places = np.random.default_rng(seed).normal(size=(count, 3))
    return places / np.linalg.norm(places, axis=1, keepdims=True)


def compare(items: np.ndarray, points: np.ndarray, count: int) -> None:
    rows = nearest_items(items, points, count)
    expected, _ = cKDTree(items).query(points, k=count)
    distances = np.linalg.norm(points[:, None] - items[rows], axis=2)
    assert np.allclose(distances, expected.reshape(distances.shape), rtol=0, atol=1e-12)
    assert all(len(set(row)) == count for row in rows.tolist())


@pytest.mark.parametrize("count", [1, 4])
def test_items_of_a_surface_near_and_far_from_it(count: int) -> None:
    items = sphere(5000, 0)
    near = 1.02 * sphere(nearest.CHUNK + 100, 1)  # more than one core takes at once
    far = np.array([[0.0, 0, 0], [9, 0, 0], [-9, 9, -9], [0, -1.5, 0.3]])
    compare(items, np.concatenate([near, far, items[:50]]), count)


def test_items_in_clusters_on_a_line_and_at_one_place() -> None:
    random = np.random.default_rng(2)
    points = random.uniform(-1, 1, (200, 3))
    compare(np.concatenate([1e-3 * random.normal(size=(3000, 3)), sphere(10, 3)]), points, 4)
    compare(np.stack([np.linspace(-1, 1, 400), np.zeros(400), np.zeros(400)], axis=1), points, 4)
    compare(np.zeros((9, 3)), points, 4)


def test_coordinates_that_are_no_places_count_in_the_distance() -> None:
    random = np.random.default_rng(4)
    items = np.concatenate([sphere(2000, 5), random.normal(size=(2000, 3))], axis=1)
    points = np.concatenate([sphere(500, 6), random.normal(size=(500, 3))], axis=1)
    compare(items, points, 4)


def test_fewer_items_than_are_asked_for() -> None:
    items = sphere(3, 7)
    assert np.sort(nearest_items(items, items, 4), axis=1).tolist() == [[0, 1, 2]] * 3
    assert nearest_items(items, items[:0], 4).shape == (0, 3)
    with pytest.raises(ValueError, match="nothing to be near"):
        nearest_items(items[:0], items, 4)
