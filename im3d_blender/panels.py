"""The sidebar tab. Drawing reads properties only, never the disk."""

from __future__ import annotations

import bpy

from . import thumbnails
from .operators import IM3D_OT_import_job, IM3D_OT_refresh_jobs
from .preferences import get_preferences
from .properties import IM3D_PG_job, IM3D_PG_session

THUMBNAIL_SCALE = 9.0


class IM3D_UL_jobs(bpy.types.UIList):
    """Finished jobs, a row each; the list's search finds words of the prompt."""

    def draw_item(
        self,
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        data: IM3D_PG_session,
        item: IM3D_PG_job,
        icon: int,
        active_data: IM3D_PG_session,
        active_property: str,
        index: int = 0,
        flt_flag: int = 0,
    ) -> None:
        number = thumbnails.icon(item.thumbnail)
        if number:
            layout.label(text=item.title, icon_value=number, translate=False)
        else:
            layout.label(text=item.title, icon="MESH_DATA", translate=False)


class IM3D_PT_jobs(bpy.types.Panel):
    bl_label = "Finished Jobs"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"

    def draw(self, context: bpy.types.Context) -> None:
        layout, session = self.layout, context.window_manager.im3d
        row = layout.row(align=True)
        row.prop(get_preferences(context), "jobs_folder", text="")
        row.operator(IM3D_OT_refresh_jobs.bl_idname, text="", icon="FILE_REFRESH")
        if not session.jobs:
            layout.label(text="No finished jobs in this folder", icon="INFO")
            return
        layout.template_list("IM3D_UL_jobs", "", session, "jobs", session, "index", rows=3)
        if session.index < len(session.jobs):
            self._draw_job(context, session, session.jobs[session.index])

    def _draw_job(self, context: bpy.types.Context, session: IM3D_PG_session, job: IM3D_PG_job) -> None:
        box = self.layout.box()
        number = thumbnails.icon(job.thumbnail)
        if number:
            box.template_icon(icon_value=number, scale=THUMBNAIL_SCALE)
        facts = box.column()
        facts.active = False
        facts.scale_y = 0.75
        facts.label(text=job.finished, translate=False)
        if job.facts:
            facts.label(text=job.facts, translate=False)

        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(session, "height")
        column.prop(context.scene.im3d, "place")

        button = self.layout.row()
        button.scale_y = 1.5
        operator = button.operator(IM3D_OT_import_job.bl_idname, text="Import", icon="IMPORT")
        operator.filepath = job.folder
        operator.height = session.height


CLASSES = [IM3D_UL_jobs, IM3D_PT_jobs]
