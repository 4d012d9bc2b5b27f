"""Reading every kind of picture, refusing what is none, writing at once, resampling without halos, framing."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from im3d.core.images import OrbitViews, bled, read_image, read_views, resized, write_png, write_views
from im3d.core.orbit import Orbit
from im3d.errors import DiskError, InputError
from im3d.views.framing import Crop, centring_crop, whole_picture

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (24, 32, 4), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_rgba_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE.astype(np.float32) / 255)


def test_modes_are_converted(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for name in ("sixteen.png", "grey.png"):
        rgba = read_image(tmp_path / name)
        assert np.allclose(rgba[..., 0], grey / 255, atol=1e-4)
        assert (rgba[..., 3] == 1).all()
    palette = Image.fromarray(PICTURE[..., :3]).quantize(7)
    palette.save(tmp_path / "palette.png", transparency=int(np.asarray(palette)[0, 0]))
    rgba = read_image(tmp_path / "palette.png")
    assert rgba[0, 0, 3] == 0
    assert set(np.unique(rgba[..., 3])) == {0, 1}
    Image.new("CMYK", (32, 24), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.allclose(read_image(tmp_path / "cmyk.jpg")[5, 5], [1, 0, 0, 1], atol=0.03)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1).astype(np.float32) / 255)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.allclose(read_image(tmp_path / "a.gif")[0, 0], [1, 0, 0, 1], atol=0.02)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(whole)
    files = {
        "text.png": b"this is not a picture\n",
        "empty.png": b"",
        "cut.png": whole.read_bytes()[:20000],
        "bomb.png": png_header(10_000, 10_000),
        "large_bomb.png": png_header(100_000, 100_000),
        "flat.png": png_header(0, 10),
        "tiny.png": png_header(3, 3),
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.png").mkdir()
    for name in [*files, "missing.png", "folder.png"]:
        with pytest.raises(InputError) as error:
            read_image(tmp_path / name)
        assert name in error.value.message
        assert error.value.hint
    with pytest.raises(InputError, match="too large"):
        read_image(tmp_path / "bomb.png")


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    write_png(target, PICTURE / np.float32(255))
    before = target.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="disk is full"):
        write_png(target, 1 - PICTURE / np.float32(255))
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    views = OrbitViews(np.ones((2, 16, 16, 4), np.float32), Orbit.uniform(2))
    with pytest.raises(InputError):
        write_views(tmp_path / "file" / "views", views)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="permission"):
        write_views(tmp_path / "views", views)


def test_views_round_trip_to_eight_bits(tmp_path: Path) -> None:
    rgba = RNG.random((3, 16, 16, 4), dtype=np.float32)
    views = OrbitViews(rgba, Orbit((0.0, 100.0, 200.0), 10.0, 40.0, 2.2))
    write_views(tmp_path / "views", views)
    again = read_views(tmp_path / "views")
    assert again.orbit == views.orbit
    assert np.abs(again.rgba - rgba).max() <= 0.5 / 255 + 1e-6
    assert sorted(os.listdir(tmp_path / "views")) == ["orbit.json", "view_000.png", "view_001.png", "view_002.png"]
    (tmp_path / "views" / "view_001.png").unlink()
    with pytest.raises(InputError, match="view_001"):
        read_views(tmp_path / "views")


def test_resizing_keeps_the_colour_under_transparency_out() -> None:
    rgba = np.zeros((64, 64, 4), np.float32)  # an editor's black under alpha 0
    rgba[20:44, 20:44] = (1, 0.5, 0, 1)
    small = resized(rgba, 17, 17)
    assert np.allclose(small[..., :3], (1, 0.5, 0), atol=1e-3)
    assert small[..., 3].mean() == pytest.approx(rgba[..., 3].mean(), rel=0.02)
    assert np.allclose(resized(rgba, 64, 64)[..., 3], rgba[..., 3], atol=1e-6)


def test_bleeding_changes_only_invisible_colours() -> None:
    rgba = np.zeros((8, 8, 4), np.float32)
    rgba[2:4, 2:4] = (0.2, 0.4, 0.6, 1)
    rgba[4, 2:4] = (0.9, 0.9, 0.9, 0.3)
    result = bled(rgba)
    assert np.array_equal(result[..., 3], rgba[..., 3])
    assert np.array_equal(result[rgba[..., 3] > 0], rgba[rgba[..., 3] > 0])
    assert np.allclose(result[0, 0, :3], (0.2, 0.4, 0.6))


def test_centring_crop_fills_the_frame() -> None:
    alpha = np.zeros((100, 200), np.float32)
    alpha[30:70, 10:30] = 1
    crop = centring_crop(alpha, 80, 0.8)
    assert (crop.left, crop.top, crop.side) == pytest.approx((-5, 25, 50))
    rgba = np.dstack([np.full((100, 200, 3), 0.7, np.float32), alpha])
    framed = crop.apply(rgba)
    rows, columns = np.nonzero(framed[..., 3] > 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 71, 24, 55)
    with pytest.raises(InputError, match="empty"):
        centring_crop(np.zeros((10, 10), np.float32), 80)


def test_whole_picture_keeps_the_optical_centre() -> None:
    assert whole_picture((100, 200, 4), 50) == Crop(0, -50, 200, 50)
    square = RNG.random((32, 32, 4), dtype=np.float32)
    assert np.allclose(whole_picture(square.shape, 32).apply(square)[..., 3], square[..., 3], atol=1e-5)
