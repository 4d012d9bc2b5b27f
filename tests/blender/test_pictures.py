"""Pictures out of Blender for the backend, and splats as points, in a real Blender."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from blender_process import INSIDE, inside
from PIL import Image

from im3d.splats.gaussians import Gaussians
from im3d.splats.ply import save_ply

pytestmark = pytest.mark.blender
SCRIPT = INSIDE.with_name("pictures.py")


def test_images_become_files_that_show_the_same(extension: Path, tmp_path: Path) -> None:
    got = inside("exported", tmp_path, extension, tmp_path / "inputs", script=SCRIPT)
    expected = np.round(np.arange(24).reshape(2, 3, 4)[::-1] / 24 * 255)
    assert np.abs(np.asarray(Image.open(got["drawn"]), float) - expected).max() <= 1
    assert got["again"] == got["drawn"]  # named by its content
    assert got["own_file"] == got["drawn"]  # a file that shows the same needs no copy
    # A float image holds light; 0.5 of it is 188 of 255 in sRGB.
    assert np.asarray(Image.open(got["linear"]))[0, 0].tolist() == [188, 0, 255, 255]
    assert got["gone"] == f"{tmp_path / 'inputs' / 'gone.png'} does not exist any more. Choose the image again."
    assert "no pixels" in got["empty"]


def test_the_camera_s_picture(extension: Path, tmp_path: Path) -> None:
    got = inside("camera", tmp_path, extension, tmp_path / "jobs", script=SCRIPT)
    assert "no camera" in got["refused"]
    assert (got["unchanged"], got["source"]) == (True, "IMAGE")
    picture = np.asarray(Image.open(got["file"]))
    assert picture.shape == (64, 64, 4)
    assert (picture[32, 32, 3], picture[2, 2, 3]) == (255, 0)


def test_a_photograph_stands_upright_in_the_panel(extension: Path, tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:32, 96:] = (250, 0, 0)  # the top right, which is the top left once it is turned a quarter to the left
    tags = Image.Exif()
    tags[0x0112] = 8
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=tags, quality=95)
    got = inside("photograph", tmp_path, extension, tmp_path / "photo.jpg", script=SCRIPT)
    assert got["size"] == [128, 256]
    assert got["top_left"][0] > 0.9
    assert got["images"] == 1


def test_splats_stand_where_the_mesh_stands(extension: Path, job: Path, tmp_path: Path) -> None:
    """The fixture's box has its corners at (±0.6, ±0.4, ±0.5) of the orbit's world and is 0.25 m high."""
    folder = tmp_path / "job"
    shutil.copytree(job, folder)
    corners = torch.tensor([[x, y, z] for x in (-0.6, 0.6) for y in (-0.4, 0.4) for z in (-0.5, 0.5)])
    rest = torch.tensor([[1.0, 0, 0, 0]]).repeat(9, 1)
    opacities = torch.tensor([0.9] * 8 + [0.01])  # the ninth is haze
    colors = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    means = torch.cat([corners, torch.zeros(1, 3)])
    save_ply(folder / "splats.ply", Gaussians(means, rest, torch.full((9, 3), 0.02), opacities, colors))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps({**result, "splats": "splats.ply"}), encoding="utf-8")

    got = inside("points", tmp_path, extension, folder, script=SCRIPT)
    # Doubled: 0.5 m instead of 0.25; the base on the ground.
    expected = corners.numpy() * 0.5 + [0, 0, 0.25]
    assert np.allclose(got["points"], expected, atol=1e-4)
    assert {tuple(np.round(v, 3)) for v in got["corners"]} == {tuple(np.round(v, 3)) for v in expected}
    assert np.abs(np.array(got["colors"])[:, :3] - colors[:8].numpy()).max() < 0.01
    assert got["radii"] == pytest.approx([0.01] * 8, rel=1e-3)
    assert got["hidden"] is True
    assert "POINTCLOUD" in got["drawn"]
