"""Views that the user brings: videos as they were held and filmed, folders with gaps and copies, large pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from turntables import write_video

from im3d.core.images import read_image
from im3d.errors import InputError
from im3d.views.files import numbered, read_provided_views
from im3d.views.video import read_turn, spaced, turned

# Display matrices as phones write them: how the stored pixels have to be turned, and numpy's way to do it.
MATRICES = {
    "as stored": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "counter-clockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "mirrored and clockwise": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


def quadrants() -> NDArray[np.uint8]:
    """A picture (48, 64, 3) that looks different however it is turned or mirrored."""
    picture = np.full((48, 64, 3), 255, np.uint8)
    picture[:24, :32] = (200, 30, 30)
    picture[24:, 32:] = (30, 30, 200)
    return picture


@pytest.mark.parametrize("held", MATRICES)
def test_a_video_is_seen_as_players_show_it(held: str, tmp_path: Path) -> None:
    matrix, expected = MATRICES[held]
    assert np.array_equal(turned(quadrants(), matrix), expected(quadrants()))
    file = write_video(tmp_path / "v.mp4", [quadrants()] * 3, [0, 0.1, 0.2], matrix)
    pictures, _ = read_turn(file, 3, 1024)
    for picture in pictures:
        assert np.abs(picture[..., :3] * 255 - expected(quadrants())).mean() < 8


def test_frames_are_chosen_and_placed_by_their_times(tmp_path: Path) -> None:
    # Two seconds at 30 frames a second, then as long at 5: half a turn each.
    times = [k / 30 for k in range(60)] + [2 + k / 5 for k in range(10)]
    shades = [np.full((48, 64, 3), round(250 * time / 4), np.uint8) for time in times]
    pictures, azimuths = read_turn(write_video(tmp_path / "v.mp4", shades, times), 8, 1024)
    assert len(pictures) == 8
    seen = [360 * float(picture[..., :3].mean()) * 255 / 250 for picture in pictures]
    assert np.abs(np.array(seen) - azimuths).max() < 8
    assert np.abs(np.array(azimuths) - 45 * np.arange(8)).max() < 10


def test_frames_without_times_count_as_even() -> None:
    assert spaced([None] * 8, False, 4) == ([0, 2, 4, 6], (0, 90, 180, 270))
    assert spaced([0, 1, 1, 2], False, 9) == ([0, 1, 2, 3], (0, 90, 180, 270))
    assert spaced([0, 1, 2, 3, 4], True, 9) == ([0, 1, 2, 3], (0, 90, 180, 270))


def test_gaps_in_the_numbers_are_missing_views() -> None:
    azimuths, warnings = numbered([f"view_{k:03d}" for k in range(16) if k not in (3, 4, 9)])
    assert azimuths == tuple(22.5 * k for k in range(16) if k not in (3, 4, 9))
    assert "gaps" in warnings[0]
    assert "3 of 16" in warnings[0]
    assert numbered(["view_10", "view_20", "view_30"]) == ((0, 120, 240), ())
    # A photographer's numbers say nothing: pictures were thrown away.
    assert numbered(["IMG_1", "IMG_2", "IMG_7"]) == ((0, 120, 240), ())


def disc(x: int) -> Image.Image:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[20:40, x : x + 20] = (200, 60, 30, 255)
    return Image.fromarray(pixels)


def test_a_view_in_two_formats_counts_once(tmp_path: Path) -> None:
    for k in range(8):
        disc(10 + k).save(tmp_path / f"view_{k:03d}.png")
        disc(10 + k).convert("RGB").save(tmp_path / f"view_{k:03d}.jpg")
    brought = read_provided_views(tmp_path)
    assert len(brought.views.orbit) == 8
    assert brought.mask_method == "alpha"
    assert "view_000.png was used" in brought.warnings[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_large_pictures_are_reduced_upright(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise
    picture = np.kron(quadrants(), np.ones((20, 20, 1), np.uint8))
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", exif=exif)
    small = read_image(tmp_path / f"a.{suffix}", 320)
    assert small.shape == (320, 240, 4)
    whole = read_image(tmp_path / f"a.{suffix}")
    assert whole.shape == (1280, 960, 4)
    assert np.abs(small - whole[2::4, 2::4]).mean() < 0.01


def test_reducing_keeps_the_colour_under_transparency_out(tmp_path: Path) -> None:
    pixels = np.zeros((400, 400, 4), np.uint8)
    pixels[100:300, 101:301] = (255, 128, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = read_image(tmp_path / "a.png", 50)
    rim = (small[..., 3] > 0.1) & (small[..., 3] < 0.9)
    assert rim.any()
    assert np.abs(small[rim, :3] - (1, 0.5, 0)).max() < 0.06
    sixteen = np.linspace(0, 65535, 400 * 400).reshape(400, 400).astype(np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", 50)[..., 0].mean() == pytest.approx(0.5, abs=0.01)


def test_heic_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    with pytest.raises(InputError, match="HEIC") as error:
        read_image(tmp_path / "a.heic")
    assert "JPEG" in error.value.hint
