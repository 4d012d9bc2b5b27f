"""Turntable videos and animated pictures: how many frames are taken, where they stand, and stills before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from turntables import clock_face, shown_azimuth, write_animation, write_video

from im3d.errors import InputError
from im3d.views.video import moving, read_turn

SUFFIXES = ("mp4", "gif", "webp")


def turntable(path: Path, azimuths_deg: Sequence[float], durations_s: Sequence[float]) -> Path:
    frames = [clock_face(azimuth) for azimuth in azimuths_deg]
    if path.suffix == ".mp4":
        return write_video(path, frames, [float(t) for t in np.cumsum([0.0, *durations_s[:-1]])])
    return write_animation(path, frames, durations_s)


def errors_deg(file: Path, views: int, count: int) -> float:
    """How far the views' azimuths are from what the frames show, at most; there must be `count`, evenly spaced."""
    pictures, azimuths = read_turn(file, views, 1024)
    assert len(pictures) == count
    assert azimuths[0] == 0.0
    assert np.abs(np.diff([*azimuths, 360.0]) - 360 / count).max() < 10
    shown = np.array([shown_azimuth(picture) for picture in pictures])
    return float(np.abs((shown - azimuths + 180) % 360 - 180).max())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("views", [8, 60])
@pytest.mark.parametrize("closed", [False, True])
def test_the_frames_taken_are_evenly_spaced(suffix: str, views: int, closed: bool, tmp_path: Path) -> None:
    azimuths = [12.0 * k for k in range(30 + closed)]
    file = turntable(tmp_path / f"turn.{suffix}", azimuths, [0.05] * len(azimuths))
    assert errors_deg(file, views, min(views, 30)) < 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_that_are_shown_longer_turn_further(suffix: str, tmp_path: Path) -> None:
    # Half a turn in 30 short frames, half in 10 long ones.
    azimuths = [*(6.0 * k for k in range(30)), *(180 + 18.0 * k for k in range(10))]
    file = turntable(tmp_path / f"turn.{suffix}", azimuths, [0.04] * 30 + [0.12] * 10)
    assert errors_deg(file, 10, 10) < 2


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("where", ["end", "start", "end of an open turn"])
def test_a_still_is_no_part_of_the_turn(suffix: str, where: str, tmp_path: Path) -> None:
    turn = [9.0 * k for k in range(40)]
    azimuths = {
        "end": [*turn, *[0.0] * 25],
        "start": [*[0.0] * 25, *turn],
        "end of an open turn": [*turn, *[351.0] * 25],
    }
    file = turntable(tmp_path / f"turn.{suffix}", azimuths[where], [0.05] * 65)
    assert errors_deg(file, 8, 8) < 2


def test_what_stands_still_at_both_ends_may_be_a_handle_behind_a_mug() -> None:
    still, turning = [np.zeros((2, 2, 4), np.float32)] * 5, [np.full((2, 2, 4), k / 9, np.float32) for k in range(9)]
    assert moving([*turning, *still]) == (0, 9)
    assert moving([*still, *turning]) == (5, 13)
    assert moving([*still, *turning, *still]) == (0, 18)
    assert moving(still) == (0, 4)


def test_large_frames_are_reduced(tmp_path: Path) -> None:
    pictures, _ = read_turn(turntable(tmp_path / "turn.webp", [0, 90, 180, 270], [0.1] * 4), 4, 64)
    assert {picture.shape for picture in pictures} == {(48, 64, 4)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_single_picture_is_no_turn(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="single picture"):
        read_turn(turntable(tmp_path / f"turn.{suffix}", [0.0], [0.1]), 8, 1024)


def test_a_film_without_pictures_or_sense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "turn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(200))
    with pytest.raises(InputError, match="neither a picture nor a video"):
        read_turn(tmp_path / "turn.mp4", 8, 1024)
