"""What Blender calls when a file was opened or saved, and when it starts to render."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import bpy

from ..core.placement import read_placement
from . import memory, open_file, session
from .arrivals import OTHER_FILE


@bpy.app.handlers.persistent
def _render_starts(*_: Any) -> None:
    if (known := session.current()) is not None:
        memory.free_before_render(bpy.context, known)


@bpy.app.handlers.persistent
def _file_loaded(*_: Any) -> None:
    """Another file is open: jobs that finished for it meanwhile may arrive now."""
    open_file.loaded()
    if (known := session.current()) is not None:
        elsewhere = [job_id for job_id, note in known.notes.items() if note == OTHER_FILE]
        known.arriving += elsewhere
        for job_id in elsewhere:
            del known.notes[job_id]


@bpy.app.handlers.persistent
def _file_saved(*_: Any) -> None:
    """The open file has another path: its jobs find it there when it is opened again."""
    before, known = open_file.saved(), session.current()
    if known is None or before is None:
        return
    for job in known.queue.jobs:
        placement = read_placement(job.folder)
        if placement is not None and placement.is_for(before, open_file.document()):
            with contextlib.suppress(OSError):
                dataclasses.replace(placement, blend=bpy.data.filepath).write(job.folder)


def attach() -> None:
    bpy.app.handlers.render_init.append(_render_starts)
    bpy.app.handlers.load_post.append(_file_loaded)
    bpy.app.handlers.save_post.append(_file_saved)


def detach() -> None:
    bpy.app.handlers.save_post.remove(_file_saved)
    bpy.app.handlers.load_post.remove(_file_loaded)
    bpy.app.handlers.render_init.remove(_render_starts)
