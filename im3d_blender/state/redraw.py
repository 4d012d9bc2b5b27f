"""Blender draws panels only when something in them changed, or when it is asked to."""

from __future__ import annotations

import bpy


def redraw(context: bpy.types.Context) -> None:
    """Has Blender redraw the sidebars that show the tab."""
    for window in context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def show_percent(context: bpy.types.Context, fraction: float | None) -> None:
    """Shows how far the running job is in Blender's status bar, which must be redrawn when that changes.

    Args:
        fraction: 0 to 1; None: no job runs.
    """
    percent = int(100 * fraction) if fraction is not None else -1
    if context.window_manager.im3d.percent != percent:
        context.window_manager.im3d.percent = percent
