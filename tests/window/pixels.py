"""Pictures of the screen as arrays of numbers 0xRRGGBB: parts, differences, files."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the screen
BLOCK, RIM = 4, 6  # pixels at scale 1


def cut(frame: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    return frame[top:bottom, left:right]


def changed(a: np.ndarray, b: np.ndarray, within: Box) -> Box | None:
    """The smallest box in a box outside which two frames are equal there; None when nothing differs."""
    different = cut(a, within) != cut(b, within)
    if not different.any():
        return None
    rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
    left, top = within[:2]
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def marked(frame: np.ndarray, other: np.ndarray, scale: int) -> tuple[np.ndarray, int]:
    """The frame with a red line under every block that only the other has, and how many rows of text have one.

    A block is at least `BLOCK` pixels at scale 1, of one colour: what has moved by a pixel, as a window's content does
    now and then, differs in thin lines only. The picture's rim is left out: a menu's own is not always drawn the same.
    """
    different = frame != other
    rim = scale * RIM
    different[:rim] = different[-rim:] = different[:, :rim] = different[:, -rim:] = False
    height, width = (max(side - scale * BLOCK + 1, 0) for side in frame.shape)
    blocks = np.ones((height, width), bool)
    for y in range(scale * BLOCK if different.any() else 0):
        for x in range(scale * BLOCK):
            there = slice(y, y + height), slice(x, x + width)
            blocks &= different[there] & (other[there] == other[:height, :width])
    rows = blocks.any(axis=1) & different.any()
    ends = np.flatnonzero(rows & ~np.append(rows[1:], False))
    out = frame.copy()
    for row in ends:
        columns = np.flatnonzero(blocks[row])
        bottom = row + scale * (BLOCK + 4)
        out[bottom : bottom + 2, max(0, int(columns[0]) - 30) : int(columns[-1]) + 8 * scale] = 0xFF0000
    return out, len(ends)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W) numbers 0xRRGGBB; complete or not at all."""
    height, width = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    for channel, shift in enumerate((16, 8, 0)):
        rows[:, 1 + channel :: 3] = pixels >> shift & 255
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
              (b"IDAT", zlib.compress(rows.tobytes(), 4)), (b"IEND", b"")]  # fmt: skip
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    os.replace(part, path)
