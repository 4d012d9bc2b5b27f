"""Sentences in the narrow sidebar: Blender's labels do not wrap, so each line is a label of its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import blf
import bpy

FONT = 0
MARGIN = 68  # pixels at scale 1 that the frame of the sidebar, its tabs and a box around the text take
PLAIN_MARGIN = 54  # the same without a box
NESTED_MARGIN = 80  # the same in a box within a box
ICON = 28  # an icon before the text, with what Blender leaves around it
DIALOG_MARGIN = 28  # the rim of a dialog, and that of the label
BUTTON_MARGIN = 32  # what the icon and the rims of a button take beside its text
LINES = 8


def wrapped(
    layout: bpy.types.UILayout,
    context: bpy.types.Context,
    text: str,
    icon: str = "NONE",
    margin: int = MARGIN,
    dialog: int = 0,
) -> None:
    """Draws a text, already translated, as labels of at most the region's width.

    Args:
        margin: What of it is taken by other things, in pixels at scale 1.
        dialog: Width of the dialog in which it is drawn, which is no region of its own; pixels at scale 1.
    """
    scale = context.preferences.system.ui_scale
    beside = ICON if icon != "NONE" else 0
    width = (dialog - DIALOG_MARGIN - beside) * scale if dialog else _width(context, margin + beside)
    column = layout.column(align=True)
    column.scale_y = 0.8
    lines = break_lines(text, max(width, 60 * scale), _measure(context))
    for number, line in enumerate(lines[:LINES]):
        more = "…" if number == LINES - 1 and len(lines) > LINES else ""
        if icon != "NONE":
            column.label(text=line + more, icon=icon if number == 0 else "BLANK1", translate=False)
        else:
            column.label(text=line + more, translate=False)


def fits(context: bpy.types.Context, text: str) -> bool:
    """Whether a text, already translated, fits beside the icon of a button in a box."""
    return bool(_measure(context)(text) <= _width(context, MARGIN + BUTTON_MARGIN))


def _width(context: bpy.types.Context, margin: int) -> float:
    """The region's width in pixels without a margin of that many pixels at scale 1."""
    scale = context.preferences.system.ui_scale
    return (context.region.width if context.region is not None else 300 * scale) - margin * scale


def break_lines(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Breaks a text into lines no wider than `width`, between words or between Chinese and Japanese characters.

    Args:
        measure: Gives the width of a text.
    """
    lines = [""]
    for piece in _pieces(text):
        longer = lines[-1] + piece
        if lines[-1] and measure(longer.rstrip()) > width:
            lines.append(piece.lstrip())
        else:
            lines[-1] = longer
    return [line.rstrip() for line in lines if line.strip()]


def _pieces(text: str) -> list[str]:
    """Words with the space before them; wide characters one by one; long paths at their separators."""
    pieces: list[str] = []
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        after_separator = bool(pieces) and pieces[-1][-1] in "/\\_@" and len(pieces[-1]) > 1
        if pieces and wide and unicodedata.category(character) in ("Pe", "Po"):  # no line begins with these
            pieces[-1] += character
        elif not pieces or character == " " or wide or after_separator or _is_wide(pieces[-1]):
            pieces.append(character)
        else:
            pieces[-1] += character
    return pieces


def _is_wide(piece: str) -> bool:
    return unicodedata.east_asian_width(piece[-1]) in "WF"


def _measure(context: bpy.types.Context) -> Callable[[str], float]:
    """Measures with the interface's own font and size."""
    # `widget_label`, the labels' own style, is gone from Blender 4.3 on; `widget` has the same size in all.
    blf.size(FONT, context.preferences.ui_styles[0].widget.points * context.preferences.system.ui_scale)
    return lambda text: blf.dimensions(FONT, text)[0]
