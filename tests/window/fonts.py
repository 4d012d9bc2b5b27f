"""Blender's interface font with another "…", which shows where Blender cuts a text off.

A text too long for its place is drawn by Blender with "…" (U+2026) for what it left out, wherever it stands. Drawn once
with the font as it is and once with a block for that character, of the same width, two pictures of the same window
differ exactly where a text was cut off.
"""

from __future__ import annotations

from pathlib import Path

from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

ELLIPSIS = 0x2026


def write_fonts(font: Path, folder: Path) -> tuple[Path, Path]:
    """Writes the font as it is and with a block for "…", as plain TrueType; returns both paths."""
    plain, marked = folder / "plain.ttf", folder / "marked.ttf"
    with TTFont(font) as opened:
        opened.flavor = None
        opened.save(plain)
        name = opened.getBestCmap()[ELLIPSIS]
        if "gvar" in opened:  # how the old outline changes with the weight
            opened["gvar"].variations.pop(name, None)
        width = opened["hmtx"][name][0]
        height = opened["hhea"].ascent
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, height), (width, height), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        opened["glyf"][name] = pen.glyph()
        opened["hmtx"][name] = (width, 0)
        opened.save(marked)
    return plain, marked
