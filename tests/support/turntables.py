"""Turntable videos of a figure whose azimuth can be read off each frame, and videos as phones write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

UPRIGHT = (1, 0, 0, 1)


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    times: Sequence[float],
    matrix: tuple[int, int, int, int] = UPRIGHT,
) -> Path:
    """An H.264 video of frames (H, W, 3) shown from `times` in seconds on, with a display matrix (a, b, c, d)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * time)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def write_animation(path: Path, frames: Sequence[NDArray[np.uint8]], durations_s: Sequence[float]) -> Path:
    """An animated GIF or WebP of frames (H, W, 3 or 4), each shown for so long."""
    pictures = [Image.fromarray(frame) for frame in frames]
    milliseconds = [round(1000 * duration) for duration in durations_s]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, lossless=True)
    return path


def clock_face(azimuth_deg: float) -> NDArray[np.uint8]:
    """A grey disc on white, (96, 128, 3), whose red dot stands at the azimuth: 0 is up, 90 right."""
    y, x = np.mgrid[:96, :128] + 0.5 - np.array([48, 64]).reshape(2, 1, 1)
    angle = np.radians(azimuth_deg)
    picture = np.full((96, 128, 3), 255, np.uint8)
    picture[np.hypot(x, y) < 30] = 90
    picture[np.hypot(x - 28 * np.sin(angle), y + 28 * np.cos(angle)) < 10] = (220, 40, 40)
    return picture


def shown_azimuth(rgba: NDArray[np.float32]) -> float:
    """The azimuth of a clock face (96, 128, 4), in [0, 360) degrees."""
    y, x = np.mgrid[:96, :128] + 0.5 - np.array([48, 64]).reshape(2, 1, 1)
    red = (rgba[..., 0] - rgba[..., 1] - 0.2).clip(0)
    return float(np.degrees(np.arctan2((red * x).sum(), -(red * y).sum())) % 360)
