"""`im3d cutout`: what the panel's Remove Background runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from im3d.cli.main import main


@pytest.fixture
def disc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A brown disc on light grey, without the network's weights."""
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
    y, x = np.mgrid[:96, :96] - 48
    pixels = np.where((x**2 + y**2 < 30**2)[..., None], (120, 70, 30), (225, 225, 228)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


def cutout(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    status = main(["cutout", *map(str, arguments), "--device", "cpu", "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_plain_background_goes(disc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "disc.png"
    status, answer = cutout(capsys, disc, "--out", out)
    assert (status, answer["status"], answer["path"]) == (0, "done", str(out))
    pixels = np.asarray(Image.open(out))
    alpha = pixels[..., 3] / 255
    assert pixels[alpha == 0].max() == 0
    assert abs(alpha.mean() - np.pi * 30**2 / 96**2) < 0.02
    assert (alpha[48, 48], alpha[0, 0]) == (1, 0)


def test_the_users_mask_rules(disc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((96, 96), np.uint8)
    mask[20:50, 20:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    status, answer = cutout(capsys, disc, "--out", tmp_path / "cut.png", "--mask", tmp_path / "mask.png")
    assert (status, answer["method"]) == (0, "mask file")
    assert (np.asarray(Image.open(tmp_path / "cut.png"))[..., 3] > 127).sum() == 900


def test_a_photograph_says_what_helps(tmp_path: Path, disc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cluttered.png")
    status, answer = cutout(capsys, tmp_path / "cluttered.png", "--out", tmp_path / "cut.png")
    assert (status, answer["code"], answer["remedy"]) == (2, "bad_input", "download isnet")
    assert not (tmp_path / "cut.png").exists()
