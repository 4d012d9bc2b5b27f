"""A failed job in the panel: one sentence, what to do, and the button that does it."""

from __future__ import annotations

import bpy

from ..client.queue import QueuedJob
from ..state.preferences import get_preferences
from .remedies import draw_remedy
from .wrapping import wrapped


def draw_failure(layout: bpy.types.UILayout, context: bpy.types.Context, job: QueuedJob) -> None:
    """Draws why a job failed and what helps."""
    failure = job.failure
    if failure is None:
        return
    box = layout.box()
    wrapped(box, context, failure.message, "ERROR")
    if failure.hint and failure.code != "backend_missing":  # there the button says it
        wrapped(box, context, failure.hint)
    draw_remedy(box, context, failure.remedy, job.id)
    column = box.column(align=True)
    column.scale_y = 1.2
    _draw_job_buttons(column, context, job, failure.code, failure.remedy)
    row = box.row(align=True)
    row.operator("im3d.copy_diagnostics", icon="COPYDOWN").job = job.id
    row.operator("im3d.open_folder", text="", icon="FILE_FOLDER").folder = str(job.folder)


def _draw_job_buttons(
    layout: bpy.types.UILayout, context: bpy.types.Context, job: QueuedJob, code: str, remedy: str
) -> None:
    if code == "out_of_memory" or remedy == "draft":
        if job.request.get("preset") != "draft":
            operator = layout.operator("im3d.retry", text="Try the Draft Preset", icon="FILE_REFRESH")
            operator.job, operator.preset, operator.seed = job.id, "draft", job.request.get("seed", 0)
        layout.operator("im3d.free_memory", icon="TRASH")
    elif code == "backend_missing":
        layout.operator("im3d.install_backend", icon="IMPORT")
    elif code == "disk":
        layout.prop(get_preferences(context), "jobs_folder", text="")
    if code not in ("bad_input", "import") or remedy == "resume":
        layout.operator("im3d.resume", text="Try Again", icon="PLAY").job = job.id
