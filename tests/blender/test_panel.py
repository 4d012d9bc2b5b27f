"""What the panel says and offers, in a real Blender, on a backend that answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blender_process import INSIDE, inside

pytestmark = pytest.mark.blender
TOKEN = "hf_Z9y8X7w6V5u4T3s2"


@pytest.fixture
def panel(blender: Callable[..., dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    return lambda function: blender(function, script="panel.py")


def test_generate_is_disabled_with_its_reason(panel: Callable[[str], dict[str, Any]]) -> None:
    got = panel("reasons")
    said = got["said"]
    assert got["opened_on"] == "IMAGE"
    assert (said["ready"]["enabled"], said["ready"]["reason"]) == (True, "")
    assert said["ready"]["generator"] == "Automatic: Mini (coarse)"
    expected = {
        "image": ("Choose an image first.", []),
        "generator": ("SV3D + elevation is not downloaded yet.", ["9.4 GB"]),
        "views": ("Choose a folder of pictures or a video first.", []),
        "prompt": ("Write a prompt first.", []),
        "words": ("Prompts need a text-to-image model (FLUX.2 klein, 16 GB).", ["16 GB"]),
    }
    for name, (reason, sizes) in expected.items():
        assert (name, said[name]["enabled"], said[name]["reason"]) == (name, False, reason)
        assert len(said[name]["buttons"]) == len(sizes)
        assert all(size in button for size, button in zip(sizes, said[name]["buttons"], strict=True))
    # A download is shown where it was started, and in the list of models.
    assert got["bars"] == [["25%"], ["25%"]]
    assert said["fetching"]["buttons"] == []
    # Which models another machine has, only it knows.
    assert (said["remote"]["enabled"], said["remote"]["generator"]) == (True, "Automatic")
    assert got["menu"] == ["Automatic", "Mini (coarse)", "SV3D + elevation", "SV3D"]


def test_models_are_listed_by_what_they_are_for(panel: Callable[[str], dict[str, Any]]) -> None:
    got = panel("listed")
    drawn = got["drawn"]
    assert got["japanese"] == ["モデルが必要で", "す。"]
    titles = ["Makes the Views", "SV3D", "Mini", "Makes a Picture from Text", "FLUX.2 klein", "Cuts Out Photographs",
              "IS-Net (cut-out)", "Quality", "VGG16 (quality)"]  # fmt: skip
    positions = [drawn.index(["label", title]) for title in titles]
    assert positions == sorted(positions)
    facts = " ".join(text for kind, text in drawn if kind == "label")
    assert "8 GB VRAM, Apache License 2.0" in facts
    assert "sv3d-nc-community). Not for commercial use." in facts
    assert [text for kind, text in drawn if kind == "im3d.download_model"] == [
        "9.4 GB", "9.4 GB", "16 GB", "33 GB", "6.9 GB", "177 MB", "553 MB",
    ]  # fmt: skip


def test_a_photograph_goes_on_after_its_download(panel: Callable[[str], dict[str, Any]]) -> None:
    got = panel("a_photograph")
    (button,) = got["buttons"]
    assert "Background Remover (177 MB)" in button
    assert got["stops"] == ["im3d.cancel_install"]
    assert (got["state"], got["objects"]) == ("done", ["photo"])


def test_the_background_is_removed_before_the_job(panel: Callable[[str], dict[str, Any]]) -> None:
    got = panel("background")
    assert "cannot be separated" in got["refused"]
    assert "Background Remover (177 MB)" in got["offered"][-1]
    assert "touches the left" in got["warned"]
    # The cut-out goes into the job, under the image's name and without a mask that was part of it.
    assert (got["image"] != "cup.png", got["name"], got["mask"]) == (True, "cup", "")
    assert (got["dropped"], got["masked"]) == (True, "mask.png")
    assert got["restored"] == "cup.png"


def test_the_real_backend_removes_a_plain_background(extension: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    script, variables = INSIDE.with_name("panel.py"), {"IM3D_PYTHON": sys.executable}
    got = inside("real_cutout", tmp_path, extension, tmp_path / "jobs", script=script, variables=variables)
    assert got["share"] == pytest.approx(3.1416 * 30**2 / 96**2, abs=0.02)
    assert (got["inside"], got["outside"]) == (1, 0)
    assert Path(got["file"]).parent.parent == tmp_path / "jobs" / "inputs"
    assert got["image"] == "cup.png"


def test_a_token_is_asked_for_where_it_is_missed_and_is_left_nowhere(
    panel: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    got = panel("token")
    assert ["wm.url_open", "Model Page"] in got["refused"]
    assert ["prop", "token"] in got["refused"]
    home = tmp_path / "home"
    assert (home / "models" / "sv3d_p" / "token").read_text() == "given"
    assert (home / "served_with_token").read_text() == "False"
    assert TOKEN not in got["report"]
    assert "render7" not in got["report"]
    assert "connect to host" in got["report"]
    assert "somebody printed" in got["report"]
    files = [p for folder in (home, tmp_path / "jobs") for p in folder.rglob("*") if p.is_file()]
    assert {p.name for p in files if TOKEN.encode() in p.read_bytes()} == {"log.txt"}  # where the test wrote it
