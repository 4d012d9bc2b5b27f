"""Splats saved for other viewers and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from splat_scenes import random_gaussians

from im3d.errors import InputError
from im3d.splats.ply import FIELDS, load_ply, save_ply


def test_round_trip(tmp_path: Path) -> None:
    gaussians = random_gaussians(100, 0.05, seed=0).detach()
    save_ply(tmp_path / "splats.ply", gaussians)
    again = load_ply(tmp_path / "splats.ply")
    for name in ("means", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(again, name), getattr(gaussians, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again.quats, torch.nn.functional.normalize(gaussians.quats, dim=1))


def test_the_layout_is_the_one_viewers_read(tmp_path: Path) -> None:
    """Field names, order and encodings of Kerbl et al. 2023, read without our loader."""
    gaussians = random_gaussians(3, 0.05, seed=1).detach()
    save_ply(tmp_path / "splats.ply", gaussians)
    header, body = (tmp_path / "splats.ply").read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert any(line.startswith("comment") and "Z up" in line for line in lines)
    assert "element vertex 3" in lines
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    expected = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert names == expected.split()
    row = dict(zip(names, np.frombuffer(body, "<f4").reshape(3, 17)[1], strict=True))
    assert 0.28209479 * row["f_dc_0"] + 0.5 == pytest.approx(float(gaussians.colors[1, 0]), abs=1e-6)
    assert 1 / (1 + np.exp(-row["opacity"])) == pytest.approx(float(gaussians.opacities[1]), abs=1e-6)
    assert np.exp(row["scale_2"]) == pytest.approx(float(gaussians.scales[1, 2]), rel=1e-5)
    assert (row["nx"], row["ny"], row["nz"]) == (0, 0, 0)


def test_files_with_higher_harmonics_are_read(tmp_path: Path) -> None:
    names = [n for n in FIELDS if n[0] != "n"]  # without normals, and with one coefficient of degree 1
    names.insert(names.index("opacity"), "f_rest_0")
    header = ["ply", "format binary_little_endian 1.0", "element vertex 2"]
    header += [f"property float {n}" for n in names] + ["end_header", ""]
    table = np.arange(30, dtype="<f4").reshape(2, 15) / 30
    (tmp_path / "other.ply").write_bytes("\n".join(header).encode() + table.tobytes())
    gaussians = load_ply(tmp_path / "other.ply")
    np.testing.assert_allclose(gaussians.means.numpy(), table[:, :3])
    np.testing.assert_allclose(gaussians.quats.numpy(), table[:, 11:])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ply\nformat ascii 1.0\nend_header\n",
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n0000",
        b"ply\nformat binary_little_endian 1.0\nelement vertex many\nproperty float x\nend_header\n0000",
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.ply").write_bytes(content)
    with pytest.raises(InputError):
        load_ply(tmp_path / "bad.ply")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    save_ply(tmp_path / "splats.ply", random_gaussians(10, 0.05, seed=2))
    whole = (tmp_path / "splats.ply").read_bytes()
    (tmp_path / "splats.ply").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="ends before"):
        load_ply(tmp_path / "splats.ply")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_ply(tmp_path / "none.ply")
