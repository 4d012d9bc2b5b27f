"""What mini's volumes are compared with: occupancy grids of props, seen from the cameras of rendered orbits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from im3d.generators.mini_frustum import RADIUS, TAN
from im3d.orbit import look_at_origin
from im3d.packs import Part, Prop
from im3d.training import render, volumes
from im3d.training.batches import Changes
from im3d.training.grids import CELLS, GridSet, occupancy
from im3d.training.orbits import OrbitSet
from im3d.training.volumes import OrbitVolumes

SIDES = {"left": (0, -1), "right": (0, 1), "below": (1, -1), "above": (1, 1), "back": (2, -1), "front": (2, 1)}


def box(*missing: str, color: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> Part:
    """A cube in glTF's axes without some of its sides."""
    vertices, faces = [], []
    for axis, sign in (SIDES[name] for name in SIDES if name not in missing):
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
        faces += [[len(vertices) + i for i in f] for f in ((0, 1, 2), (0, 2, 3))]
        vertices += np.insert(corners, axis, sign * 0.5, axis=1).tolist()
    return Part(np.array(vertices, np.float32), np.array(faces, np.int32), None, color, None, False, 1.0)


def prop(*parts: Part) -> Prop:
    return Prop("p", "p", "c", "CC0-1.0", "g", "train", parts)


@pytest.mark.parametrize(("missing", "filled"), [((), True), (("below",), True), (("above",), False)])
def test_what_no_camera_sees_is_filled(missing: tuple[str, ...], filled: bool) -> None:
    grid, half = occupancy(prop(box(*missing)))
    np.testing.assert_allclose(half, 0.5 * CELLS / (CELLS - 3), rtol=1e-6)
    middle = CELLS // 2
    assert (grid[middle, middle, middle, 3] == 255) == filled
    assert not grid[0, ..., 3].any()
    assert not grid[:, :, -1, 3].any()
    # All of the front side is occupied: the product's front is -Y, the lowest row.
    front = grid[8:-8, 1:3, 8:-8, 3].max(axis=1)
    assert (front == 255).all()
    np.testing.assert_array_equal(grid[middle, middle, middle, :3], [255, 0, 0])


def test_colours_come_from_textures_and_alpha_cuts_holes() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0], pixels[1] = (0, 0, 255, 255), (0, 255, 0, 0)  # the lower half is cut out
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "webp", lossless=True, exact=True)
    wall = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
    uv = wall[:, :2] + 0.5
    part = Part(wall, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv, (1, 1, 1), data.getvalue(), True, 1.0)
    grid, half = occupancy(prop(part))
    assert half[1] < 0.01  # as thin as it is, and so are its cells
    by_height = grid[..., 3].max(axis=(1, 2)) > 0
    assert not by_height[: CELLS // 2 - 1].any()
    assert by_height[CELLS // 2 + 1 : -1].all()
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
    cells[0, np.linalg.norm(where[..., :3] / where[..., 3:] - moved, axis=-1) < radius] = (200, 100, 50, 255)
    orbits = OrbitSet(
        np.zeros((1, 16, 8, 8, 4), np.uint8), np.float32([elevation]), np.array(["train"]), np.array(["p"])
    )
    monkeypatch.setattr(
        volumes, "_frames", lambda *a: (np.float32([azimuth]), np.linalg.inv(deformation)[None].astype(np.float32))
    )
    grids = GridSet(cells, half[None].astype(np.float32), np.array(["p"]))
    target = OrbitVolumes(grids, orbits, [], torch.device("cpu")).at(
        changed(start, mirrored), 64, 32, torch.Generator().manual_seed(0)
    )
    camera = look_at_origin(azimuth + 22.5 * start, elevation, RADIUS)
    right, down, depth = (camera @ np.append(moved, 1))[:3]
    if mirrored:
        right = -right
    d, row, column = (v.float().mean().item() + 0.5 for v in target.occupancy[0].nonzero(as_tuple=True))
    assert column == pytest.approx((right / depth / TAN + 1) * 32, abs=0.4)
    assert row == pytest.approx((down / depth / TAN + 1) * 32, abs=0.4)
    assert d == pytest.approx((depth - RADIUS + 1) * 16, abs=0.3)
    # Cells that are touched count, so the ball comes out a little large.
    volume = target.occupancy.sum().item() * (depth * TAN / 32) ** 2 / 16
    assert 0.95 < volume / (4 / 3 * np.pi * radius**3) < 1.6
    found = target.color[0][:, target.weight[0, 0] > 0]
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
    azimuth, to_prop = volumes._frames(orbits, [Path("a.npz")])
    recipes = [render.recipe_of("p", "train", 0, 2), render.recipe_of("p", "train", 1, 2)]
    recipes.append(render.recipe_of("q", "train", 0, 2))
    assert recipes[0] != render.recipe_of("p", "train", 0)  # another draw
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
        deformation = render.training_recipe("p", i).applied(points)
        scale = points @ deformation[3, :3] + deformation[3, 3]
        assert scale.min() > 0.5
