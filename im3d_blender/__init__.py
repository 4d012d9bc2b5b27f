"""IM-3D inside Blender: bpy, numpy and the standard library, nothing else.

    importing     a finished mesh as one clean object (also used by the command line)
    jobs          finished jobs on disk (no bpy)
    preferences   the folders
    properties    what the panel shows and edits
    thumbnails    the jobs' preview pictures as icons
    operators     import a job, read the jobs folder again
    panels        the sidebar tab

Modules with classes export them as CLASSES, in the order in which they must be registered.
"""

from __future__ import annotations

import bpy

from . import operators, panels, preferences, properties, thumbnails

CLASSES = [*preferences.CLASSES, *properties.CLASSES, *operators.CLASSES, *panels.CLASSES]


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    properties.attach()
    operators.attach()


def unregister() -> None:
    operators.detach()
    properties.detach()
    thumbnails.clear()
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
