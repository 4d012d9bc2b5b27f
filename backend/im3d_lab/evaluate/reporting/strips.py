"""A picture of what was measured: columns of pictures with their names above."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from im3d.core.images import over, to_bytes

TILE = 192
CAPTION = 18


def write_strip(path: Path, columns: dict[str, NDArray[np.float32]]) -> None:
    """Writes a contact sheet.

    Args:
        path: PNG to write.
        columns: Caption → (R, S, S, 4) pictures, straight alpha, shown on white from top to bottom.
    """
    rows = max(len(pictures) for pictures in columns.values())
    sheet = Image.new("RGB", (TILE * len(columns), CAPTION + TILE * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, pictures) in enumerate(columns.items()):
        draw.text((column * TILE + TILE // 2, CAPTION // 2), caption, fill="black", anchor="mm")
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(to_bytes(over(picture))).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * TILE, CAPTION + row * TILE))
    sheet.save(path)
