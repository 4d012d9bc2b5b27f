"""The window as it is on the screen, read from Xvfb's memory. Runs inside Blender."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import bpy
import numpy as np
from pixels import Box, cut

MOST_DRAWS = 150


class Screen:
    """Xvfb's picture of the screen (`-fbdir`).

    Args:
        file: Its framebuffer, a window dump (XWD).
    """

    def __init__(self, file: Path) -> None:
        with open(file, "rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        header = struct.unpack(">25I", self._map[:100])
        self._start, self._row = header[0] + 12 * header[19], header[12]
        self.width, self.height = header[4], header[5]

    def frame(self) -> np.ndarray:
        """What is on the screen where windows are, (H, W) numbers 0xRRGGBB."""
        pixels = np.frombuffer(self._map, "<u4", self._row // 4 * self.height, self._start)
        windows = bpy.context.window_manager.windows
        right = windows[0].width if len(windows) == 1 else self.width
        return pixels.reshape(self.height, -1)[:, :right].copy()

    def settled(self, equal: int = 1) -> Iterator[None]:
        """To be yielded from: until so many draws have changed nothing, and all pictures are loaded."""
        before, still = None, 0
        for _ in range(MOST_DRAWS):
            for window in bpy.context.window_manager.windows:
                for region in (r for area in window.screen.areas for r in area.regions):
                    # The scene is dear to draw without a graphics card, and nobody looks at it.
                    if region.type != "WINDOW" or window.screen.areas[0].type != "VIEW_3D":
                        region.tag_redraw()
            yield  # Blender draws before it comes back to its timers
            now = self.frame()
            still = still + 1 if before is not None and np.array_equal(before, now) else 0
            if still >= equal and not bpy.app.is_job_running("RENDER_PREVIEW"):
                return
            before = now
        raise RuntimeError("the window never stood still")

    def box_of(self, window: bpy.types.Window, region: bpy.types.Region, whole: bool = False) -> Box:
        """Where a region is on the screen; its last rows of plain background left out, unless the whole is wanted."""
        left, top = window.x + region.x, self.height - window.y - region.y - region.height
        box = (left, top, left + region.width, top + region.height)
        if whole:
            return box
        rows = cut(self.frame(), box)
        plain = (rows == rows[-16]).all(axis=1)  # the last ones have rounded corners
        plain[-16:] = True
        used = np.flatnonzero(~plain)
        return (*box[:3], top + min(int(used[-1]) + 12 if len(used) else 1, region.height))
