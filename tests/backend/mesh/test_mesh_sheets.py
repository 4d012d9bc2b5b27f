"""A leaf over a ball: two views see the leaf from its edge, and their masks deny it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.mesh.fusion.field import fused_field
from im3d.mesh.fusion.sheets import sheet_field, sheet_splats
from im3d.mesh.fusion.silhouettes import Grid, signed_distances
from im3d.settings import MeshSettings
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import render

SIZE = 96
LEAF_Z = (0.1, 0.4)
EDGE_ON = (4, 12)


def splats(points: np.ndarray, scales: tuple[float, float, float]) -> Gaussians:
    n = len(points)
    return Gaussians(
        torch.tensor(points, dtype=torch.float32),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        torch.tensor([scales]).repeat(n, 1),
        torch.full((n,), 0.95),
        torch.full((n, 3), 0.4),
    )


@pytest.fixture(scope="module")
def scene() -> tuple[Gaussians, int, OrbitViews]:
    """Ball and leaf, how many splats are the ball's, and the views."""
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(3000, 3))
    ball = 0.2 * ball / np.linalg.norm(ball, axis=1, keepdims=True) - (0, 0, 0.2)
    x, z = np.meshgrid(np.linspace(-0.12, 0.12, 25), np.linspace(*LEAF_Z, 31))
    leaf = np.stack([x.ravel(), 0 * x.ravel(), z.ravel()], axis=1)
    a, b = splats(ball, (0.015, 0.015, 0.015)), splats(leaf, (0.008, 0.0004, 0.008))
    both = Gaussians(*(torch.cat([getattr(a, k), getattr(b, k)]) for k in Gaussians.__dataclass_fields__))
    orbit = Orbit.uniform(16, 10.0, radius=2.0)
    cameras = orbit.cameras(SIZE)
    whole, without = (render(g, cameras, "cpu").alpha.numpy() for g in (both, a))
    alpha = np.where(np.isin(np.arange(16), EDGE_ON)[:, None, None], without, whole)
    rgba = np.concatenate([np.full((16, SIZE, SIZE, 3), 0.4), (alpha > 0.5)[..., None]], axis=-1)
    return both, len(ball), OrbitViews(rgba.astype(np.float32), orbit)


def outlines(views: OrbitViews) -> np.ndarray:
    return np.stack([signed_distances(alpha) for alpha in views.rgba[..., 3]])


def test_only_the_splats_that_few_views_deny_are_a_sheet(scene: tuple[Gaussians, int, OrbitViews]) -> None:
    gaussians, ball, views = scene
    cameras = views.orbit.cameras(SIZE)
    found = sheet_splats(gaussians, outlines(views), cameras)
    leaf = len(gaussians) - ball
    assert 0.8 * leaf < len(found) <= leaf
    assert found.means[:, 2].min() > LEAF_Z[0] - 0.01
    # Where a third of the views deny it, it is not there.
    more = views.rgba.copy()
    more[2:7] = views.rgba[EDGE_ON[0]]
    assert len(sheet_splats(gaussians, outlines(OrbitViews(more, views.orbit)), cameras)) == 0


def test_the_field_is_a_plate_about_the_splats(scene: tuple[Gaussians, int, OrbitViews]) -> None:
    gaussians, ball, views = scene
    cameras = views.orbit.cameras(SIZE)
    grid = Grid.around(np.full(3, -0.5), np.full(3, 0.5), 101)
    field = sheet_field(gaussians[ball:], outlines(views), cameras, grid, 0.05)
    inside = np.argwhere(field < 0) * grid.step + grid.low
    assert np.abs(inside[:, 1]).max() < 1.5 * grid.step
    assert np.abs(inside[:, 0]).max() == pytest.approx(0.12, abs=0.03)
    assert (inside[:, 2].min(), inside[:, 2].max()) == pytest.approx(LEAF_Z, abs=0.03)


def test_the_object_keeps_its_leaf(scene: tuple[Gaussians, int, OrbitViews]) -> None:
    gaussians, _, views = scene
    field = fused_field(gaussians, views, MeshSettings(grid=96))
    inside = np.argwhere(field.values < 0) * field.grid.step + field.grid.low
    leaf = inside[inside[:, 2] > 0.15]
    assert leaf[:, 2].max() == pytest.approx(LEAF_Z[1], abs=0.03)
    assert np.abs(leaf[:, 1]).max() < 0.03
    assert field.grid.low[2] + field.grid.step * 95 > LEAF_Z[1]
