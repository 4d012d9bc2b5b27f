"""Preview pictures of jobs as icons. Blender reads a picture when its icon is first drawn, on a thread of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy.utils.previews

_previews: Any = None


def load(path: Path) -> str:
    """Makes a picture available and returns its key; a picture that changed gets a new key."""
    global _previews
    if _previews is None:
        _previews = bpy.utils.previews.new()
    key = f"{path}@{path.stat().st_mtime_ns}"
    if key not in _previews:
        _previews.load(key, str(path), "IMAGE")
    return key


def icon(key: str) -> int:
    """The icon's number, 0 (no icon) for an unknown key."""
    return _previews[key].icon_id if _previews is not None and key in _previews else 0


def clear() -> None:
    global _previews
    if _previews is not None:
        bpy.utils.previews.remove(_previews)
        _previews = None
