"""What `make test-window` decides outside Blender: where rooms come from, what counts as a fault, what is no fault."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import room
import run
from fonts import write_fonts
from PIL import Image, ImageDraw, ImageFont
from pixels import marked

DEB822 = """Types: deb
URIs: http://archive.example/debian-security/
Suites: bookworm-security

Types: deb
# URIs: http://old.example/debian
URIs: https://archive.example/debian/
Suites: bookworm
"""


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ([DEB822], "https://archive.example/debian"),
        (["deb [arch=amd64] http://other.example/repo x main\ndeb http://a.example/debian bookworm main"],
         "http://a.example/debian"),
        (["# deb http://a.example/debian bookworm main", "deb http://a.example/ubuntu noble main"], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_the_mirror_is_the_machines_own(sources: list[str], found: str) -> None:
    assert room.mirror(sources) == found


def test_without_a_room_a_suite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run._suite("sid", tmp_path / "rooms", tmp_path / "out", tmp_path / "im3d.zip", {}) == 0
    assert capsys.readouterr().out == "sid: skipped: a room needs root\n"


REPORT: dict[str, Any] = {"states": ["idle"], "looks": ["en_1x_dark"], "cut_off": []}


@pytest.mark.parametrize(
    ("log", "report", "status", "words"),
    [
        ("Blender quit", REPORT, 0, []),
        (
            "state idle, en\nTraceback (most recent call last):\nKeyError: 'x'",
            REPORT,
            0,
            ["state idle, en: ", "KeyError"],
        ),
        ("rna_uiItemO: unknown operator 'im3d.gone'", REPORT, 0, ["unknown operator"]),
        ("Segmentation fault", REPORT, 139, ["Segmentation fault", "139"]),
        ("", {**REPORT, "states": ["idle", "gone"]}, 0, ["no picture gone.en_1x_dark"]),
        ("", {**REPORT, "cut_off": ["idle.en_1x_dark"]}, 0, ["cut off", "idle.en_1x_dark.cut.png"]),
        ("", {**REPORT, "states": []}, 0, ["no such states"]),
    ],
)
def test_what_fails_a_run(tmp_path: Path, log: str, report: dict[str, Any], status: int, words: list[str]) -> None:
    (tmp_path / "log.txt").write_text(log)
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "idle.en_1x_dark.png").write_bytes(b"")
    said = " | ".join(run._faults(tmp_path, status))
    assert [word for word in words if word not in said] == []
    assert bool(words) == bool(said)


def test_only_the_ellipsis_looks_different(tmp_path: Path) -> None:
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    plain, marked = (ImageFont.truetype(str(path), 11) for path in write_fonts(font, tmp_path))
    for text, same in (("Stable Video 3D, with camera", True), ("Stable Vid…", False)):
        assert plain.getlength(text) == marked.getlength(text)
        assert (bytes(plain.getmask(text)) == bytes(marked.getmask(text))) is same


@pytest.mark.parametrize("scale", [1, 2])
def test_a_block_is_found_and_a_text_that_moved_is_not(tmp_path: Path, scale: int) -> None:
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    plain, other = (ImageFont.truetype(str(path), 11 * scale) for path in write_fonts(font, tmp_path))

    def drawn(text: str, font: ImageFont.FreeTypeFont, left: int = 4) -> np.ndarray:
        picture = Image.new("L", (200 * scale, 20 * scale), 60)
        ImageDraw.Draw(picture).text((left, 4), text, font=font, fill=230)
        return np.asarray(picture).astype(np.uint32)

    assert marked(drawn("Stable Vid…", plain), drawn("Stable Vid…", other), scale)[1] == 1
    assert marked(drawn("Stable Video", plain), drawn("Stable Video", other), scale)[1] == 0
    assert marked(drawn("Stable Video", plain), drawn("Stable Video", plain, left=5), scale)[1] == 0
