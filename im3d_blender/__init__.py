"""IM-3D inside Blender: bpy, numpy and the standard library, nothing else.

Without bpy
    job_request, placement   what a job is asked to make, and where its object goes
    jobs, model_facts        finished jobs and models on disk
    tasks, diagnostics       a command of the backend; a report without anything private
    link/, install/          the backend's process and the queue; installing the backend

With bpy
    preferences, properties  what is kept with Blender and with the scene
    cutout, readiness        the image without its background; what the next job lacks
    session, backend_state   the queue and the backend of this session, ticked by one timer
    importing, arrival       a finished mesh as one clean object (also used by the command line), in its scene
    assets, lods, splats     what an object can bring along
    pictures, thumbnails     pictures out of Blender; pictures of jobs as icons
    generate, batch          one job, or a table of them
    operators, …_operators   what the buttons do
    command_line             blender --command im3d …
    panels, …_ui             the sidebar tab
    translations/            its texts in other languages

Modules with classes export them as CLASSES, in the order in which they must be registered.
"""

from __future__ import annotations

import bpy

from . import translations
from .ops import (
    backend as backend_operators,
    batch,
    command_line,
    file_handlers,
    generate,
    import_job as operators,
    picture as picture_operators,
    queue as queue_operators,
)
from .state import backend_state, cutout, preferences, properties, session, thumbnails
from .ui import backend as backend_ui, history as history_ui, panels, queue as queue_ui

_MODULES = (
    preferences,
    properties,
    operators,
    generate,
    file_handlers,
    batch,
    queue_operators,
    picture_operators,
    backend_operators,
    panels,
    queue_ui,
    history_ui,
    backend_ui,
)
CLASSES = [cls for module in _MODULES for cls in module.CLASSES]


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    translations.attach(preferences.BASE_PACKAGE)
    properties.attach()
    operators.attach()
    queue_ui.attach()
    file_handlers.attach()
    session.attach()
    command_line.attach()


def unregister() -> None:
    command_line.detach()
    session.detach()
    backend_state.close()
    file_handlers.detach()
    queue_ui.detach()
    cutout.cancel()
    operators.detach()
    properties.detach()
    thumbnails.clear()
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
    translations.detach(preferences.BASE_PACKAGE)
