"""Views of which nothing is known: elevation and direction are found, and the object is not mirrored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from analytic import render
from turntables import write_video

from im3d.cli.main import main
from im3d.core.images import OrbitViews, over, write_png
from im3d.core.orbit import Orbit
from im3d.splats import elevation_search

# Small enough for seconds.
SMALL = ("fit.iterations=90", "fit.size=64", "fit.points=1200", "fit.max_gaussians=2000", "mesh.grid=64",
         "mesh.virtual_views=4", "mesh.faces=3000", "texture.size=128", "texture.normal_map=false")  # fmt: skip
# With the field of view that is taken for granted; a little further away, because the object fills its box.
DISTANCE = 2.4


def the_wrong_way(count: int, elevation_deg: float) -> OrbitViews:
    """The test object's views (count, 96, 96, 4) by a camera that goes round against the convention."""
    orbit = Orbit(tuple(-360 * k / count for k in range(count)), elevation_deg, radius=DISTANCE)
    return OrbitViews(render(orbit.cameras(96)), orbit)


def generated(views: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The result of `im3d generate --views …`; the preview comes from the splats."""
    monkeypatch.setenv("PATH", "/nonexistent")
    short = dataclasses.replace(elevation_search.TILT_FIT, iterations=120, size=64, points=1200, max_gaussians=2000)
    monkeypatch.setattr(elevation_search, "TILT_FIT", short)
    monkeypatch.setattr(elevation_search, "TILT_WARM_UP", 60)
    settings = [part for value in SMALL for part in ("--set", value)]
    command = ["generate", "--views", str(views), "--out", str(out), "--device", "cpu", "--blender", "/none", "--json"]
    assert main([*command, *settings]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def share_inside(result: dict[str, Any], truth: OrbitViews, mirrored: bool) -> float:
    """The share of the mesh's vertices, or of their mirror image, that the true masks show; pictures tell no scale."""
    orbit = json.loads((Path(result["job"]) / "views" / "orbit.json").read_text())
    mesh = trimesh.load(result["mesh"], force="mesh")
    points = trimesh.transform_points(mesh.vertices, np.array(result["orbit_from_glb"]))
    points *= DISTANCE / orbit["radius"] * np.array([-1 if mirrored else 1, 1, 1])
    pixels = np.floor(truth.orbit.cameras(truth.size).project(points)[..., :2]).astype(int).clip(0, truth.size - 1)
    return float(np.mean([truth.rgba[k, y, x, 3] > 0.1 for k, (x, y) in enumerate(pixels.transpose(0, 2, 1))]))


def check(result: dict[str, Any], truth: OrbitViews) -> None:
    assert result["elevation_deg"] == pytest.approx(truth.orbit.elevation_deg, abs=2)
    assert result["elevation_method"] == "masks"
    assert result["elevation_confidence"] > 0.5
    assert result["direction"] == -1
    assert result["direction_confidence"] > 0.5
    assert result["warnings"] == []
    # The object's handle would be on its other side.
    inside, mirrored = (share_inside(result, truth, mirrored) for mirrored in (False, True))
    assert inside > 0.94
    assert mirrored < inside - 0.05


@pytest.mark.slow
def test_a_folder_without_orbit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pot").mkdir()
    truth = the_wrong_way(12, 20.0)
    for k, view in enumerate(truth.rgba):
        write_png(tmp_path / "pot" / f"{k:02d}.png", view)
    check(generated(tmp_path / "pot", tmp_path / "job", monkeypatch, capsys), truth)


@pytest.mark.slow
def test_a_video_that_stands_still_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = the_wrong_way(32, 10.0)
    seen = [*truth.rgba, *[truth.rgba[0]] * 12]
    frames = [np.round(255 * over(view, 1.0)).astype(np.uint8) for view in seen]
    file = write_video(tmp_path / "pot.mp4", frames, [k / 16 for k in range(len(frames))])
    check(generated(file, tmp_path / "job", monkeypatch, capsys), truth)
    assert len(list((tmp_path / "job" / "views").glob("*.png"))) == 16
