"""Lifting views into mini's volume and drawing it, against the cameras of `im3d.orbit`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from im3d.generators.mini_resampling import (
    RADIUS,
    cell_centres,
    gathered,
    input_view_coordinates,
    lifted,
    quarter_rotations,
    sample_depths,
    sampled,
    to_cells,
)
from im3d.orbit import DEFAULT_FOV_DEG, Orbit

N, VIEWS = 16, 16
CPU = torch.device("cpu")
POINT = np.array([0.45, -0.3, 0.25])  # in the world: right, away from the input camera (+Y), up


def blob(point: np.ndarray, width: float = 0.16) -> torch.Tensor:
    """(1, N, N, N, 1): a bump about a world point."""
    c = cell_centres(N, CPU)
    z, d, x = torch.meshgrid(c, c, c, indexing="ij")
    squares = (x - point[0]) ** 2 + (d - point[1]) ** 2 + (z - point[2]) ** 2
    return (-squares / (2 * width**2)).exp()[None, ..., None]


def projected(point: np.ndarray, elevation_deg: float) -> np.ndarray:
    """(VIEWS, 3): picture coordinates in [−1, 1] and depth of a point in each view, by the orbit's cameras."""
    cameras = Orbit.uniform(VIEWS, elevation_deg, DEFAULT_FOV_DEG, RADIUS).cameras(200)
    xyz = cameras.project(point[None])[:, 0]
    return np.concatenate([xyz[:, :2] / 100 - 1, xyz[:, 2:]], axis=1)


@pytest.mark.parametrize("elevation", [0.0, 17.0, 44.0])
def test_a_point_is_drawn_where_every_camera_sees_it(elevation: float) -> None:
    rays = sampled(blob(POINT), torch.tensor([math.radians(elevation)]), VIEWS)[0, ..., 0]
    c, depths = cell_centres(N, CPU), sample_depths(N, CPU)
    for k, (u, v, depth) in enumerate(projected(POINT, elevation)):
        weights = rays[..., k].square() / rays[..., k].square().sum()
        assert float((weights.sum((1, 2)) * depths).sum()) == pytest.approx(depth, abs=0.02)
        assert float((weights.sum((0, 2)) * c).sum()) == pytest.approx(v, abs=0.02)
        assert float((weights.sum((0, 1)) * c).sum()) == pytest.approx(u, abs=0.02)


@pytest.mark.parametrize("elevation", [0.0, 31.0])
def test_lifted_views_agree_at_the_point_they_show(elevation: float) -> None:
    c = cell_centres(N, CPU)
    pictures = []
    for u, v, _ in projected(POINT, elevation):
        pictures.append((-((c[None, :] - u) ** 2 + (c[:, None] - v) ** 2) / (2 * 0.15**2)).exp())
    features = torch.stack(pictures)[..., None]
    volumes = lifted(features, torch.full((VIEWS,), math.radians(elevation)))
    mean = gathered(volumes[None].permute(0, 2, 3, 4, 1, 5))[0, ..., 0]
    z, d, x = np.unravel_index(int(mean.argmax()), mean.shape)
    assert np.abs(np.array([c[x], c[d], c[z]]) - POINT).max() < 1.2 / N
    assert mean.max() > 0.75


def test_gathering_equal_rings_changes_nothing_far_from_the_border() -> None:
    ring = blob(np.array([0.0, 0.0, 0.2]), 0.25)[..., None, :].expand(-1, -1, -1, -1, VIEWS, -1)
    torch.testing.assert_close(gathered(ring)[0, :, 4:12, 4:12], ring[0, :, 4:12, 4:12, 0], atol=0.03, rtol=0)


def test_points_of_every_view_are_found_in_the_input_view() -> None:
    elevation = 23.0
    size = 64
    seen = projected(POINT, elevation)
    depth = torch.from_numpy(seen[:, 2]).float().view(1, VIEWS, 1, 1).expand(1, VIEWS, size, size)
    xy, depth0 = input_view_coordinates(depth, torch.tensor([math.radians(elevation)]))
    for k, (u, v, _) in enumerate(seen):
        column, row = (int(torch.round(to_cells(torch.tensor(w), size))) for w in (u, v))
        assert np.abs(xy[0, k, row, column].numpy() - seen[0, :2]).max() < 0.03
        assert float(depth0[0, k, row, column]) == pytest.approx(seen[0, 2], abs=0.05)


def test_what_was_kept_while_sampling_serves_training() -> None:
    quarter_rotations.cache_clear()
    with torch.inference_mode():
        sampled(torch.zeros(1, 4, 4, 4, 1), torch.zeros(1), 8)
    volume = torch.rand(1, 4, 4, 4, 1, requires_grad=True)
    sampled(volume, torch.zeros(1), 8).sum().backward()
    assert volume.grad is not None
    assert volume.grad.abs().sum() > 0
