"""Where the backend keeps what outlives a job: one folder, `IM3D_HOME` or the platform's place for user data."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def home_folder() -> Path:
    """The folder under which models and caches lie; it may not exist yet."""
    chosen = os.environ.get("IM3D_HOME")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", _user_home() / "AppData" / "Local")) / "im3d"
    if sys.platform == "darwin":
        return _user_home() / "Library" / "Application Support" / "im3d"
    return Path(os.environ.get("XDG_DATA_HOME", _user_home() / ".local" / "share")) / "im3d"


def _user_home() -> Path:
    """The user's home; where the system knows none, as for the nameless users of containers, the temporary folder."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def models_folder() -> Path:
    """Where model weights lie, one folder a model."""
    return home_folder() / "models"


def cache_folder() -> Path:
    """Where files lie that can be made again: unpacked packs, renders."""
    return home_folder() / "cache"
