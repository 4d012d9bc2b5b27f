"""What mini's volumes are compared with: grids of distances, seen from the cameras of rendered orbits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_props import box

from im3d.core.orbit import look_at_origin
from im3d.generators.mini.frustum import RADIUS, TAN
from im3d_lab.packs import Part, Prop
from im3d_lab.training.data import opengl, volumes
from im3d_lab.training.data.batches import Changes
from im3d_lab.training.data.grids import (
    AT_SURFACE,
    CELLS,
    DISTANCE_STEP,
    NEAR,
    SHEET_SWELL,
    SOLID_SWELL,
    GridSet,
    distance_grid,
)
from im3d_lab.training.data.orbits import OrbitSet
from im3d_lab.training.data.volumes import OrbitVolumes


def distances(cells: np.ndarray) -> np.ndarray:
    """Signed distances (…) to the surface of cells (…, 4), in units of the prop's unit sphere, negative inside."""
    return (AT_SURFACE - cells[..., 3].astype(np.float32)) * DISTANCE_STEP


def prop(*parts: Part) -> Prop:
    return Prop("p", "p", "c", "CC0-1.0", "g", "train", parts)


@pytest.mark.parametrize(("missing", "filled"), [((), True), (("below",), True), (("above",), False)])
def test_what_no_camera_sees_is_filled(missing: tuple[str, ...], filled: bool) -> None:
    grid, half = distance_grid(prop(box(*missing)))
    np.testing.assert_allclose(half, 0.5 + NEAR, rtol=1e-6)
    middle = CELLS // 2
    distance = distances(grid)
    assert (distance[middle, middle, middle] < 0) == filled
    assert (distance[0] > 0).all()
    assert (distance[:, :, -1] > 0).all()
    # The front side, the product's -Y: distances are exact on both sides of it, but for the swelling.
    y = ((np.arange(CELLS) + 0.5) * 2 / CELLS - 1) * half[1]
    swell = SOLID_SWELL if filled else SHEET_SWELL
    near = np.abs(y + 0.5) < NEAR - half[1] / CELLS
    row, truth = distance[middle - 5, near, middle + 3], -0.5 - y[near]
    if not filled:
        truth = np.abs(truth)
    assert len(truth) >= 3
    # Sampled points lie a few thousandths apart, and a cell that the surface crosses counts as outside.
    crossed = np.abs(truth) < half[1] / CELLS
    np.testing.assert_allclose(row[~crossed], (truth - swell)[~crossed], atol=0.003 + DISTANCE_STEP)
    assert (np.abs(row[crossed] + swell) < half[1] / CELLS + 0.004).all()
    np.testing.assert_array_equal(grid[middle, middle, middle, :3], [255, 0, 0])


def test_colours_come_from_textures_and_alpha_cuts_holes() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0], pixels[1] = (0, 0, 255, 255), (0, 255, 0, 0)  # the lower half is cut out
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "webp", lossless=True, exact=True)
    wall = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
    uv = wall[:, :2] + 0.5
    part = Part(wall, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv, (1, 1, 1), data.getvalue(), True, 1.0)
    grid, half = distance_grid(prop(part))
    assert half[1] == pytest.approx(NEAR)  # as thin as it is, and so are its cells
    by_height = distances(grid).min(axis=(1, 2)) < 0
    assert not by_height[: CELLS // 2 - 1].any()
    assert by_height[CELLS // 2 + 2 : -4].all()
    np.testing.assert_array_equal(grid[-8, CELLS // 2, CELLS // 2, :3], [0, 0, 255])


def changed(start: int, mirrored: bool) -> Changes:
    return Changes(torch.tensor([0]), torch.tensor([start]), torch.tensor([mirrored]), torch.eye(3)[None])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("start", [0, 5])
def test_a_target_lies_where_the_camera_sees_it(start: int, mirrored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    half = np.array([0.5, 0.3, 0.4]) * CELLS / (CELLS - 3)
    azimuth, elevation = 33.0, 25.0
    # Stretched, leant and tapered.
    deformation = np.array([[1.2, 0, 0.1, 0], [0, 0.9, 0, 0.02], [0, 0, 1.0, 0], [0, 0.1, 0.2, 1]])
    center, radius = np.array([0.25, -0.12, 0.17]), 0.09
    z, y, x = np.meshgrid(*[(np.arange(CELLS) + 0.5) * 2 / CELLS - 1] * 3, indexing="ij")
    points = np.stack([x, y, z], axis=-1) * half
    cells = np.zeros((1, CELLS, CELLS, CELLS, 4), np.uint8)
    moved = np.append(center, 1) @ deformation.T
    moved = moved[:3] / moved[3]
    where = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ deformation.T
    depth_inside = radius - np.linalg.norm(where[..., :3] / where[..., 3:] - moved, axis=-1)
    cells[0, ..., :3] = (200, 100, 50)
    cells[0, ..., 3] = (128 + depth_inside / DISTANCE_STEP).round().clip(0, 255)
    orbits = OrbitSet(
        np.zeros((1, 16, 8, 8, 4), np.uint8), np.float32([elevation]), np.array(["train"]), np.array(["p"])
    )
    monkeypatch.setattr(
        volumes, "frames", lambda *a: (np.float32([azimuth]), np.linalg.inv(deformation)[None].astype(np.float32))
    )
    grids = GridSet(cells, half[None].astype(np.float32), np.array(["p"]))
    target = OrbitVolumes(grids, orbits, [], torch.device("cpu")).at(changed(start, mirrored), 64, 32)
    camera = look_at_origin(azimuth + 22.5 * start, elevation, RADIUS)
    right, down, depth = (camera @ np.append(moved, 1))[:3]
    if mirrored:
        right = -right
    filled = target.occupancy[0]
    places = torch.meshgrid(*(torch.arange(n) + 0.5 for n in filled.shape), indexing="ij")
    d, row, column = ((filled * p).sum().item() / filled.sum().item() for p in places)
    assert column == pytest.approx((right / depth / TAN + 1) * 32, abs=0.4)
    assert row == pytest.approx((down / depth / TAN + 1) * 32, abs=0.4)
    assert d == pytest.approx((depth - RADIUS + 1) * 16, abs=0.3)
    # Of a cell's two depths the fuller counts, so the ball comes out a little large.
    volume = filled.sum().item() * (depth * TAN / 32) ** 2 / 16
    assert 0.95 < volume / (4 / 3 * np.pi * radius**3) < 1.5
    found = target.color[0][:, target.weight[0, 0] > 0.01]
    torch.testing.assert_close(found, (torch.tensor([200, 100, 50]) / 255)[:, None].expand_as(found))
    assert target.weight.max() <= 1


def test_frames_follow_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakePack:
        path = Path("a.npz")

        def __getitem__(self, key: str) -> Prop:
            return prop(box())

    monkeypatch.setattr(volumes.Pack, "open", lambda path: FakePack())
    names = np.array(["a.npz/p", "a.npz/p", "a.npz/q"])
    orbits = OrbitSet(np.zeros((3, 16, 8, 8, 4), np.uint8), np.zeros(3, np.float32), np.array(["train"] * 3), names, 2)
    azimuth, to_prop = volumes.frames(orbits, [Path("a.npz")])
    recipes = [opengl.recipe_of("p", "train", 0, 2), opengl.recipe_of("p", "train", 1, 2)]
    recipes.append(opengl.recipe_of("q", "train", 0, 2))
    assert recipes[0] != opengl.recipe_of("p", "train", 0)  # another draw
    np.testing.assert_allclose(azimuth, [r.azimuth_deg for r in recipes], rtol=1e-6)
    corners = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], [1.0])).reshape(4, -1).T
    for inverse, recipe in zip(to_prop.astype(np.float64), recipes, strict=True):
        world = corners @ np.linalg.inv(inverse).T
        world = world[:, :3] / world[:, 3:]
        # As large as asked, and where it was asked for.
        assert np.linalg.norm(world - recipe.offset, axis=1).max() == pytest.approx(recipe.scale, rel=1e-5)
        np.testing.assert_allclose((world.max(axis=0) + world.min(axis=0)) / 2, recipe.offset, atol=1e-6)
        back = np.append(world, np.ones((8, 1)), axis=1) @ inverse.T
        np.testing.assert_allclose(back[:, :3] / back[:, 3:], corners[:, :3], atol=1e-6)


def test_deformed_props_stay_before_the_camera() -> None:
    points = np.random.default_rng(0).normal(size=(500, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for i in range(300):
        deformation = opengl.training_recipe("p", i).applied(points)
        scale = points @ deformation[3, :3] + deformation[3, 3]
        assert scale.min() > 0.5
