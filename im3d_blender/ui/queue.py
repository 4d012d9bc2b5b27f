"""The queue in the panel: the running job with its pictures, those that wait, and those that ended without a result."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from ..client.queue import QueuedJob
from ..scene import arrival
from ..state import session, thumbnails
from ..state.arrivals import OTHER_FILE
from .errors import draw_failure
from .wrapping import wrapped

# The backend's stages, as people call them, and what is done for a backend on another machine.
STAGES = {
    "send": "Sending Files",
    "load": "Loading",
    "image": "Cutting Out",
    "orbit": "Generating Views",
    "fit": "Fitting Splats",
    "refine": "Refining Views",
    "mesh": "Building Mesh",
    "texture": "Baking Texture",
    "export": "Finishing",
    "fetch": "Fetching Result",
}
GENERATED = ("image", "orbit")
PICTURE_SCALE = 6.0
FRAMES_PER_ROW = 4
FRAME_SCALE = 2.0


class IM3D_PT_queue(bpy.types.Panel):
    bl_label = "Jobs"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"
    bl_order = 1

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        known = session.current()
        return known is not None and bool(shown_jobs(known) or known.left)

    def draw(self, context: bpy.types.Context) -> None:
        known = session.current()
        if known is None:
            return
        if known.left:
            row = self.layout.row()
            row.label(text=_("Unfinished: {}").format(len(known.left)), icon="PAUSE", translate=False)
            row.operator("im3d.resume_left", icon="PLAY")
        position = 0
        for job in shown_jobs(known):
            if job.state == "running":
                draw_running(self.layout, context, known, job)
            elif job.state == "waiting":
                position += 1
                _draw_waiting(self.layout, job, position)
            else:
                _draw_ended(self.layout, context, known, job)
        if any(is_ended(known, job) for job in shown_jobs(known)):
            self.layout.operator("im3d.clear_ended", icon="TRASH")


def shown_jobs(known: session.Session) -> list[QueuedJob]:
    """All but those that are done and have nothing more to say: they are among the finished jobs."""
    said = [j.id for j in known.queue.jobs if j.warnings or known.notes.get(j.id)]
    return [j for j in known.queue.jobs if j.state != "done" or j.id in known.arriving or j.id in said]


def is_ended(known: session.Session, job: QueuedJob) -> bool:
    """Whether nothing more happens to the job by itself."""
    return job.state not in session.RUNNING and job.id not in known.arriving


def draw_running(
    layout: bpy.types.UILayout, context: bpy.types.Context, known: session.Session, job: QueuedJob
) -> None:
    box = layout.box()
    row = box.row()
    row.label(text=job.request["name"], icon="RENDER_ANIMATION", translate=False)
    row.operator("im3d.cancel", text="", icon="X", emboss=False).job = job.id
    box.progress(factor=job.fraction, text=f"{job.fraction:.0%}")
    facts = box.row()
    facts.scale_y = 0.8
    facts.label(text=stage_text(job), translate=False)
    eta = facts.row()
    eta.alignment = "RIGHT"
    eta.label(text=time_left(job.eta_s), translate=False)
    _draw_warnings(box, context, job)
    _draw_pictures(box, known, job)


def stage_text(job: QueuedJob) -> str:
    """What is being done, as people call it."""
    if job.stage in GENERATED and job.step == 0 and job.steps > 1:
        return _("Loading the Model")
    return _(STAGES.get(job.stage, "Starting"))


def draw_status(header: bpy.types.Header, context: bpy.types.Context) -> None:
    """At the end of Blender's status bar: the running job, also where no sidebar is open."""
    known = session.current()
    job = known.running if known is not None else None
    if job is None:
        return
    row = header.layout.row()
    text = f"{job.request['name']}: {stage_text(job)} {job.fraction:.0%}  {time_left(job.eta_s)}".strip()
    row.label(text=text, icon="RENDER_ANIMATION", translate=False)


def _draw_warnings(layout: bpy.types.UILayout, context: bpy.types.Context, job: QueuedJob) -> None:
    for warning in job.warnings:
        wrapped(layout, context, _(warning), "INFO")


def _draw_pictures(box: bpy.types.UILayout, known: session.Session, job: QueuedJob) -> None:
    picture = thumbnails.icon(known.pictures.get(job.id, ""))
    if picture:
        box.template_icon(icon_value=picture, scale=PICTURE_SCALE)
    frames = [number for key in known.frames.get(job.id, []) if (number := thumbnails.icon(key))]
    if frames:
        grid = box.grid_flow(row_major=True, columns=FRAMES_PER_ROW, even_columns=True, even_rows=True, align=True)
        for number in frames:
            grid.template_icon(icon_value=number, scale=FRAME_SCALE)


def _draw_waiting(layout: bpy.types.UILayout, job: QueuedJob, position: int) -> None:
    row = layout.row()
    row.label(text=f"{position}.  {job.request['name']}", icon="TIME", translate=False)
    row.operator("im3d.cancel", text="", icon="X", emboss=False).job = job.id


def _draw_ended(layout: bpy.types.UILayout, context: bpy.types.Context, known: session.Session, job: QueuedJob) -> None:
    icons = {"failed": "ERROR", "cancelled": "CANCEL", "done": "CHECKMARK"}
    row = layout.row()
    row.label(text=job.request["name"], icon=icons[job.state], translate=False)
    buttons = row.row(align=True)
    elsewhere = known.notes.get(job.id) == OTHER_FILE
    if job.id in known.arriving or elsewhere:
        if arrival.busy(context) and not elsewhere:
            wrapped(layout, context, _("Waiting for Object Mode"), "BLANK1")
        buttons.operator("im3d.arrive", text="", icon="IMPORT").job = job.id
    if job.state == "cancelled":
        buttons.operator("im3d.resume", text="", icon="PLAY").job = job.id
    if job.state != "done":
        buttons.operator("im3d.retry", text="", icon="FILE_REFRESH").job = job.id
    if is_ended(known, job):
        buttons.operator("im3d.remove", text="", icon="X").job = job.id
    if job.state == "failed":
        draw_failure(layout, context, job)
    else:
        _draw_warnings(layout, context, job)
    if job.state != "failed" and known.notes.get(job.id):
        wrapped(layout, context, _(known.notes[job.id]), "INFO")


def time_left(seconds: float | None) -> str:
    """A duration as people say it, rounded up so that it is not passed."""
    if seconds is None:
        return ""
    if seconds < 60:
        return _("{} s left").format(max(1, round(seconds)))
    if seconds < 5400:
        return _("{} min left").format(round(seconds / 60 + 0.4))
    return _("{} h left").format(f"{seconds / 3600:.1f}")


def attach() -> None:
    bpy.types.STATUSBAR_HT_header.append(draw_status)


def detach() -> None:
    bpy.types.STATUSBAR_HT_header.remove(draw_status)


CLASSES = [IM3D_PT_queue]
