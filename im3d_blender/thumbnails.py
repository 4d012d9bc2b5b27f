"""Pictures of jobs as icons. Blender reads a picture when its icon is first drawn, on a thread of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy.utils.previews

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


def clear() -> None:
    global _previews
    if _previews is not None:
        bpy.utils.previews.remove(_previews)
        _previews = None
    _current.clear()
