"""A failed job in the panel: one sentence, what to do, and the button that does it."""

from __future__ import annotations

import re

import bpy

from .link.queue import QueuedJob
from .preferences import get_preferences, online
from .wrapping import wrapped

# The backend names the model in its hint, as the command that gets it.
_MODEL = re.compile(r"im3d models (?:download|licence) (\w+)")


def draw_failure(layout: bpy.types.UILayout, context: bpy.types.Context, job: QueuedJob) -> None:
    """Draws why a job failed and what helps."""
    failure = job.failure
    if failure is None:
        return
    box = layout.box()
    wrapped(box, context, failure.message, "ERROR")
    hint = _hint(failure.code, failure.hint)
    if hint:
        wrapped(box, context, hint)
    column = box.column(align=True)
    column.scale_y = 1.2
    _draw_fix(column, context, job, failure.code, f"{failure.message} {failure.hint}")
    row = box.row(align=True)
    row.operator("im3d.copy_diagnostics", icon="COPYDOWN").job = job.id
    row.operator("im3d.open_folder", text="", icon="FILE_FOLDER").folder = str(job.folder)


def _hint(code: str, hint: str) -> str:
    """The hint, unless it names a command line where the panel has a button."""
    return "" if "im3d " in hint or code in ("out_of_memory", "backend_missing") else hint


def _draw_fix(layout: bpy.types.UILayout, context: bpy.types.Context, job: QueuedJob, code: str, text: str) -> None:
    model = _MODEL.search(text)
    if code == "model_missing" and not online():
        draw_allow_online(layout, context)
    elif code == "model_missing" and model is not None:
        layout.operator("im3d.download_model", text="Download Model", icon="IMPORT").model = model.group(1)
    elif code == "out_of_memory":
        if job.request.get("preset") != "draft":
            operator = layout.operator("im3d.retry", text="Try the Draft Preset", icon="FILE_REFRESH")
            operator.job, operator.preset, operator.seed = job.id, "draft", job.request.get("seed", 0)
        layout.operator("im3d.free_memory", icon="TRASH")
    elif code == "backend_missing":
        layout.operator("im3d.install_backend", icon="IMPORT")
    elif code == "disk":
        layout.prop(get_preferences(context), "jobs_folder", text="")
    if code not in ("bad_input", "import"):
        layout.operator("im3d.resume", text="Try Again", icon="PLAY").job = job.id


def draw_allow_online(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Downloads need a permission that only the user gives."""
    wrapped(
        layout, context, bpy.app.translations.pgettext_iface("Online access is switched off in Blender."), "INTERNET"
    )
    layout.operator("screen.userpref_show", text="System Preferences", icon="PREFERENCES").section = "SYSTEM"
