"""Pictures of jobs as icons. Blender reads a picture when its icon is first drawn, on a thread of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
import bpy.utils.previews
import numpy as np

from ..core import exif

THUMBNAIL_SIZE = 256
_previews: Any = None
_current: dict[str, str] = {}  # path -> key of the picture as it was last loaded


def load(path: Path) -> str:
    """Makes a picture available and returns its key; a picture that changed gets a new key.

    Returns:
        "" when the picture is not there (any more).
    """
    global _previews
    try:
        key = f"{path}@{path.stat().st_mtime_ns}"
    except OSError:
        return ""
    if _previews is None:
        _previews = bpy.utils.previews.new()
    if key not in _previews:
        _previews.load(key, str(path), "IMAGE")
        outdated = _current.get(str(path))
        if outdated in _previews:
            del _previews[outdated]
        _current[str(path)] = key
    return key


def icon(key: str) -> int:
    """The icon's number, 0 (no icon) for an unknown key."""
    return _previews[key].icon_id if _previews is not None and key in _previews else 0


def stand_upright(image: bpy.types.Image) -> None:
    """Gives a photograph that lies on its side in its file a preview that stands, as the backend takes it."""
    number = exif.orientation(Path(bpy.path.abspath(image.filepath, library=image.library)))
    if number == 1 or image.packed_file or not all(image.size):
        return
    small = image.copy()
    try:
        scale = THUMBNAIL_SIZE / max(small.size)
        small.scale(*(max(1, round(scale * side)) for side in image.size))
        width, height = small.size
        pixels = np.empty(4 * width * height, np.float32)
        small.pixels.foreach_get(pixels)
    finally:
        bpy.data.images.remove(small)
    # Blender's rows go from the bottom to the top.
    turned = exif.upright(pixels.reshape(height, width, 4)[::-1], number)
    preview = image.preview_ensure()
    preview.image_size = (turned.shape[1], turned.shape[0])
    preview.image_pixels_float.foreach_set(np.ascontiguousarray(turned[::-1]).ravel())


def clear() -> None:
    global _previews
    if _previews is not None:
        bpy.utils.previews.remove(_previews)
        _previews = None
    _current.clear()
