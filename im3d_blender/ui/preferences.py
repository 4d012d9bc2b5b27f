"""The add-on's page in Blender's preferences."""

from __future__ import annotations

import bpy

from ..state.preferences import BASE_PACKAGE, PreferenceProperties
from .backend import draw_backend

GROUPS = (
    ("home", "jobs_folder", "remote_host"),
    ("token",),
    ("generator", "on_close"),
    ("free_when_idle", "idle_minutes", "free_before_render"),
)


class IM3D_AP_preferences(PreferenceProperties, bpy.types.AddonPreferences):
    bl_idname = BASE_PACKAGE

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        draw_backend(layout, context)
        for group in GROUPS:
            column = layout.column(align=True)
            for name in group:
                row = column.row()
                row.active = name != "idle_minutes" or self.free_when_idle
                row.prop(self, name)


CLASSES = [IM3D_AP_preferences]
