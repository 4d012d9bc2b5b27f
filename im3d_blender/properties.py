"""What the panel shows and edits: settings saved with the scene, and the session's snapshot of the jobs folder."""

from __future__ import annotations

import time
from pathlib import Path

import bpy

from . import jobs, thumbnails
from .preferences import get_preferences

PLACES = [
    ("CURSOR", "3D Cursor", "The centre of the object's base goes to the 3D cursor"),
    ("ORIGIN", "Origin", "The centre of the object's base goes to the world's origin"),
]


class IM3D_PG_scene(bpy.types.PropertyGroup):
    """Scene.im3d"""

    place: bpy.props.EnumProperty(name="Place", description="Where a new object stands", items=PLACES)


class IM3D_PG_job(bpy.types.PropertyGroup):
    """A row of the job list; `name` is the row's text and what the list's search looks at."""

    folder: bpy.props.StringProperty()
    title: bpy.props.StringProperty()
    facts: bpy.props.StringProperty()
    finished: bpy.props.StringProperty()
    thumbnail: bpy.props.StringProperty()
    height: bpy.props.FloatProperty()


def _job_chosen(session: IM3D_PG_session, context: bpy.types.Context) -> None:
    if session.index < len(session.jobs):
        session.height = session.jobs[session.index].height


class IM3D_PG_session(bpy.types.PropertyGroup):
    """WindowManager.im3d: not saved, not undone."""

    jobs: bpy.props.CollectionProperty(type=IM3D_PG_job)
    index: bpy.props.IntProperty(update=_job_chosen)
    height: bpy.props.FloatProperty(
        name="Height (m)",
        description="Height of the imported object in metres, whatever unit the scene shows",
        default=1.0,
        min=0.001,
        max=1000.0,
        precision=3,
    )


def refresh_jobs(context: bpy.types.Context) -> None:
    """Reads the jobs folder into the list; the chosen job stays chosen if it is still there."""
    session = context.window_manager.im3d
    chosen = session.jobs[session.index].folder if session.index < len(session.jobs) else ""
    session.jobs.clear()
    for job in jobs.find_jobs(Path(bpy.path.abspath(get_preferences(context).jobs_folder))):
        row = session.jobs.add()
        row.folder = str(job.folder)
        row.title = job.name
        # The list's own search looks at this text.
        row.name = f"{job.name} {job.prompt}"
        row.facts = f"{job.faces:,} faces" if job.faces else ""
        row.finished = time.strftime("%x %H:%M", time.localtime(job.finished))
        row.height = job.height_m
        if job.preview is not None:
            row.thumbnail = thumbnails.load(job.preview)
    folders = [row.folder for row in session.jobs]
    session.index = folders.index(chosen) if chosen in folders else 0


def _refresh_soon() -> None:
    """Timer, once: while an add-on is being enabled, the context has no window manager to fill."""
    refresh_jobs(bpy.context)


@bpy.app.handlers.persistent
def _file_loaded(*_: object) -> None:
    refresh_jobs(bpy.context)


def attach() -> None:
    bpy.types.Scene.im3d = bpy.props.PointerProperty(type=IM3D_PG_scene)
    bpy.types.WindowManager.im3d = bpy.props.PointerProperty(type=IM3D_PG_session)
    bpy.app.handlers.load_post.append(_file_loaded)
    bpy.app.timers.register(_refresh_soon, first_interval=0.0)


def detach() -> None:
    if bpy.app.timers.is_registered(_refresh_soon):
        bpy.app.timers.unregister(_refresh_soon)
    bpy.app.handlers.load_post.remove(_file_loaded)
    del bpy.types.WindowManager.im3d
    del bpy.types.Scene.im3d


CLASSES = [IM3D_PG_scene, IM3D_PG_job, IM3D_PG_session]
