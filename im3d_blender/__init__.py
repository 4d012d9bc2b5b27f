"""IM-3D inside Blender: bpy, numpy and the standard library, nothing else.

Rooms, from the ground up; each knows only those above it in this list:

    core/     what a job is asked to make, its place in the scene, finished jobs, models (no bpy)
    client/   the backend's process, its messages, the queue, files of another machine (no bpy)
    install/  installing the backend (no bpy)
    scene/    a finished mesh as one clean object; pictures out of Blender
    state/    preferences, properties, and this session's queue and backend, ticked by one timer
    ui/       the sidebar tab and the preferences' page: drawing only
    ops/      what the buttons and scripts do
    translations/  the texts in other languages

Modules with classes export them as CLASSES, in the order in which they must be registered.
"""

from __future__ import annotations

import bpy

from . import translations
from .ops import (
    backend as backend_ops,
    batch,
    command_line,
    file_handlers,
    generate,
    import_job,
    picture as picture_ops,
    queue as queue_ops,
)
from .state import backend_state, cutout, handlers, properties, session, thumbnails, timer
from .state.preferences import BASE_PACKAGE
from .ui import backend as backend_ui, history, panels, preferences, queue as queue_ui

_MODULES = (
    preferences,
    properties,
    import_job,
    generate,
    file_handlers,
    batch,
    queue_ops,
    picture_ops,
    backend_ops,
    panels,
    queue_ui,
    history,
    backend_ui,
)
CLASSES = [cls for module in _MODULES for cls in module.CLASSES]


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    translations.attach(BASE_PACKAGE)
    properties.attach()
    import_job.attach()
    queue_ui.attach()
    file_handlers.attach()
    session.attach()
    handlers.attach()
    timer.attach()
    command_line.attach()


def unregister() -> None:
    command_line.detach()
    timer.detach()
    handlers.detach()
    session.detach()
    backend_state.close()
    file_handlers.detach()
    queue_ui.detach()
    cutout.cancel()
    import_job.detach()
    properties.detach()
    thumbnails.clear()
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)
    translations.detach(BASE_PACKAGE)
