"""Outlines that meet the masks: spheres, whose silhouettes are known exactly, and what must not move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.mesh.outline import _edges, _laplacian, fit_outlines
from im3d.mesh.surface import TriangleMesh

SIZE = 128
# Two rings of cameras, so that contours cross most of a sphere.
ORBIT = Orbit.uniform(12, 25.0)
RADIUS = 0.4
PIXEL = ORBIT.radius / ORBIT.cameras(SIZE).focal


def ball(radius: float) -> TriangleMesh:
    mesh = trimesh.creation.icosphere(4, radius)
    return TriangleMesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))


def radii(mesh: TriangleMesh) -> NDArray[np.float64]:
    return np.linalg.norm(mesh.vertices.astype(np.float64), axis=1)


@pytest.fixture(scope="module")
def views() -> OrbitViews:
    """A sphere about the origin: from the distance d its outline is a circle of f·R / √(d² − R²) pixels."""
    outline = ORBIT.cameras(SIZE).focal * RADIUS / math.sqrt(ORBIT.radius**2 - RADIUS**2)
    y, x = (np.mgrid[: SIZE * 8, : SIZE * 8] + 0.5) / 8 - SIZE / 2
    alpha = (np.hypot(x, y) < outline).reshape(SIZE, 8, SIZE, 8).mean(axis=(1, 3)).astype(np.float32)
    picture = np.dstack([np.full((SIZE, SIZE, 3), 0.5, np.float32), alpha])
    return OrbitViews(np.stack([picture] * len(ORBIT)), ORBIT)


def seen_as_contour(mesh: TriangleMesh) -> NDArray[np.bool_]:
    """Vertices within 4° of some camera's circle of tangent points."""
    unit = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    centres = ORBIT.cameras(SIZE).centres
    angles = np.degrees(np.arccos(unit @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T))
    tangent = math.degrees(math.acos(RADIUS / ORBIT.radius))
    return (np.abs(angles - tangent) < 4).any(axis=1)


@pytest.mark.parametrize("off_px", [-1.5, 0.0, 1.5])
def test_contours_meet_the_mask_within_parts_of_a_pixel(off_px: float, views: OrbitViews) -> None:
    start = ball(RADIUS + off_px * PIXEL)
    reported: list[tuple[int, int]] = []
    fitted = fit_outlines(start, views, 3, lambda step, steps, _=None: reported.append((step, steps)))
    assert reported == [(1, 3), (2, 3), (3, 3)]
    assert np.array_equal(fitted.faces, start.faces)
    contour = seen_as_contour(start)
    assert contour.sum() > 1000
    error_px = (radii(fitted)[contour] - RADIUS) / PIXEL
    assert abs(error_px.mean()) < 0.04
    assert np.abs(error_px).max() < 0.35


def test_an_outline_out_of_reach_belongs_to_something_else(views: OrbitViews) -> None:
    start = ball(RADIUS - 4 * PIXEL)
    assert np.array_equal(fit_outlines(start, views, 2).vertices, start.vertices)


def test_a_contour_hidden_inside_the_mesh_is_left_alone(views: OrbitViews) -> None:
    """Both balls are within reach of the mask, but only the outer one makes the mesh's outline."""
    outer, inner = ball(RADIUS - 0.5 * PIXEL), ball(RADIUS - 1.7 * PIXEL)
    count = len(outer.vertices)
    both = TriangleMesh(
        np.concatenate([outer.vertices, inner.vertices]), np.concatenate([outer.faces, inner.faces + count])
    )
    fitted = fit_outlines(both, views, 1)
    assert np.array_equal(fitted.vertices[count:], inner.vertices)
    grown = radii(fitted)[:count][seen_as_contour(outer)] - (RADIUS - 0.5 * PIXEL)
    assert grown.mean() == pytest.approx(0.5 * PIXEL, abs=0.1 * PIXEL)


def test_edges_join_two_faces_and_the_laplacian_of_a_sphere_points_inwards() -> None:
    mesh = ball(1.0)
    edges, sides = _edges(mesh.faces)
    assert len(edges) == 3 * len(mesh.faces) // 2
    for edge, pair in zip(edges, sides, strict=True):
        assert set(edge) == set(mesh.faces[pair[0]]) & set(mesh.faces[pair[1]])
    laplacian = _laplacian(edges, len(mesh.vertices))
    assert np.allclose(laplacian @ np.ones(len(mesh.vertices)), 0)
    outwards = np.einsum("vc,vc->v", laplacian @ mesh.vertices, mesh.vertices)
    assert (outwards > 0).all()
