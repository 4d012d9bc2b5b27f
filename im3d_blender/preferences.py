"""The add-on's preferences: where things lie on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bpy

# bl_ext.<repository>.im3d: Blender files an extension's preferences under its root package.
BASE_PACKAGE = (__package__ or "").rpartition(".")[0]


def default_home() -> Path:
    """The folder that the backend uses by default: `IM3D_HOME` or the platform's place for user data."""
    chosen = os.environ.get("IM3D_HOME")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "im3d"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "im3d"
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "im3d"


def _jobs_folder_changed(preferences: IM3D_AP_preferences, context: bpy.types.Context) -> None:
    from .properties import refresh_jobs

    refresh_jobs(context)


class IM3D_AP_preferences(bpy.types.AddonPreferences):
    bl_idname = BASE_PACKAGE

    jobs_folder: bpy.props.StringProperty(
        name="Jobs",
        description="Folder that holds the job folders; it survives an update of the add-on",
        subtype="DIR_PATH",
        default=str(default_home() / "jobs"),
        update=_jobs_folder_changed,
    )

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.prop(self, "jobs_folder")


def get_preferences(context: bpy.types.Context) -> IM3D_AP_preferences:
    return context.preferences.addons[BASE_PACKAGE].preferences


CLASSES = [IM3D_AP_preferences]
