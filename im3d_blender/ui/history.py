"""The finished jobs in the panel: found by prompt, imported again, looked at in their folder."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from ..core.model_facts import generator_label
from ..state import thumbnails
from ..state.preferences import get_preferences
from ..state.properties import IM3D_PG_job, IM3D_PG_session
from .wrapping import wrapped

THUMBNAIL_SCALE = 7.0


class IM3D_UL_jobs(bpy.types.UIList):
    """Finished jobs, a row each"""

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

    def draw_filter(self, context: bpy.types.Context, layout: bpy.types.UILayout) -> None:
        """Nothing: the search field stands above the list, where it is seen."""

    def filter_items(self, context: bpy.types.Context, data: IM3D_PG_session, property: str) -> tuple[list[int], list]:
        words = data.search.casefold().split()
        shown = [all(word in row.name.casefold() for word in words) for row in data.jobs]
        return [self.bitflag_filter_item if show else 0 for show in shown], []


class IM3D_PT_jobs(bpy.types.Panel):
    bl_label = "Finished Jobs"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        layout, session = self.layout, context.window_manager.im3d
        row = layout.row(align=True)
        row.prop(session, "search", text="", icon="VIEWZOOM")
        row.operator("im3d.refresh_jobs", text="", icon="FILE_REFRESH")
        folder = get_preferences(context).jobs_folder
        row.operator("im3d.open_folder", text="", icon="FILE_FOLDER").folder = folder
        if not session.jobs:
            layout.label(text="No finished jobs yet", icon="INFO")
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
        if job.prompt:
            wrapped(facts, context, job.prompt)
        facts.label(text=job.finished, translate=False)
        seed = _("seed {}").format(job.seed)
        facts.label(text=f"{_(generator_label(job.generator))}, {seed}", translate=False)
        if job.faces:
            facts.label(text=_("{} faces").format(f"{job.faces:,}"), translate=False)

        for warning in job.warnings.splitlines():
            wrapped(box, context, _(warning), "INFO")

        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(session, "height")
        column.prop(context.scene.im3d, "place")

        row = self.layout.row(align=True)
        row.scale_y = 1.5
        operator = row.operator("im3d.import_job", text="Import", icon="IMPORT")
        operator.filepath = job.folder
        operator.height = session.height
        row.operator("im3d.open_folder", text="", icon="FILE_FOLDER").folder = job.folder


CLASSES = [IM3D_UL_jobs, IM3D_PT_jobs]
