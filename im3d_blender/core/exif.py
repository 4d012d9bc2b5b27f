"""Which way up a photograph is: cameras write it beside the pixels, which Blender shows as they lie. No bpy here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

# It stands near the beginning, before the pixels.
HEAD_BYTES = 1 << 16
ORIENTATION = 0x0112


def orientation(path: Path) -> int:
    """EXIF's number, 1 to 8, for JPEG and PNG files; 1, upright, for all that says nothing."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        mark = b"Exif\0\0" if head.startswith(b"\xff\xd8") else b"eXIf"
        at = head.find(mark)
        return _from_tiff(head[at + len(mark) :]) if at >= 0 else 1
    except (OSError, struct.error):
        return 1


def _from_tiff(data: bytes) -> int:
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry)[0] == ORIENTATION:
            value = int(struct.unpack_from(order + "H", data, entry + 8)[0])
            return value if 1 <= value <= 8 else 1
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C), the first row at the top, turned and mirrored as an orientation says."""
    mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}
    return np.rot90(mirrored, turns[orientation])
