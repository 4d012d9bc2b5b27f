"""Where the backend keeps what outlives a job: one folder, `IM3D_HOME` or the platform's place for user data."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home_folder() -> Path:
    """The folder under which models and caches lie; it may not exist yet."""
    chosen = os.environ.get("IM3D_HOME")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "im3d"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "im3d"
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "im3d"


def models_folder() -> Path:
    """Where model weights lie, one folder a model."""
    return home_folder() / "models"


def cache_folder() -> Path:
    """Where files lie that can be made again: unpacked packs, renders."""
    return home_folder() / "cache"
