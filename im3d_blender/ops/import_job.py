"""Finished jobs into the scene. Every input is a property, so that scripts can give it; only `invoke` looks at the
panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from ..core import finished_jobs
from ..core.placement import Placement
from ..scene import arrival, importing
from ..scene.assets import THIS_FILE
from ..state.preferences import home_folder
from ..state.properties import refresh_jobs


class IM3D_OT_import_job(bpy.types.Operator):
    """Add the object of a finished IM-3D job to the scene"""

    bl_idname = "im3d.import_job"
    bl_label = "Import IM-3D Job"
    bl_options = {"REGISTER", "UNDO"}

    filepath: bpy.props.StringProperty(
        name="Job",
        description="The job folder, or the result.json in it",
        subtype="FILE_PATH",
        options={"SKIP_SAVE"},
    )
    filter_glob: bpy.props.StringProperty(default="*.json", options={"HIDDEN", "SKIP_SAVE"})
    height: bpy.props.FloatProperty(
        name="Height (m)",
        description="Height in metres, whatever unit the scene shows; 0 keeps the height that the job was asked for",
        default=0.0,
        min=0.0,
        max=1000.0,
        precision=3,
        options={"SKIP_SAVE"},
    )
    location: bpy.props.FloatVectorProperty(
        name="Location",
        description="Where the centre of the object's base goes",
        subtype="TRANSLATION",
        options={"SKIP_SAVE"},
    )
    step_aside: bpy.props.BoolProperty(
        name="Step Aside",
        description="Place the object beside what stands at its location already, instead of into it",
        default=True,
        options={"SKIP_SAVE"},
    )
    name: bpy.props.StringProperty(
        name="Name", description="Name of the object; empty takes the job's", options={"SKIP_SAVE"}
    )
    collection: bpy.props.StringProperty(
        name="Collection",
        description="Collection that receives the object; empty takes the active one",
        options={"SKIP_SAVE"},
    )
    select: bpy.props.BoolProperty(
        name="Select",
        description="Make the new object the selected one; otherwise the selection stays as it is",
        default=True,
        options={"SKIP_SAVE"},
    )
    library: bpy.props.StringProperty(
        name="Library",
        description="Asset library that receives the object; LOCAL marks it in this file only, empty does neither",
        options={"SKIP_SAVE"},
    )
    lods: bpy.props.BoolProperty(
        name="Levels of Detail",
        description="Add copies with 50 % and 25 % of the triangles",
        options={"SKIP_SAVE"},
    )
    splats: bpy.props.BoolProperty(
        name="Point Cloud", description="Add the splats as coloured points", options={"SKIP_SAVE"}
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        settings = context.scene.im3d
        if settings.place == "CURSOR":
            self.location = context.scene.cursor.location
        self.lods, self.splats = settings.lods, settings.splats
        self.library = (settings.library or THIS_FILE) if settings.as_asset else ""
        if not self.filepath:
            context.window_manager.fileselect_add(self)
            return {"RUNNING_MODAL"}
        return self.execute(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            job = finished_jobs.read_job(Path(bpy.path.abspath(self.filepath)))
            obj, notes = arrival.place(
                context, job, self._placement(), home_folder(context), name=self.name, height=self.height
            )
        except (finished_jobs.JobError, importing.ImportFailedError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        for note in notes:
            self.report({"WARNING"}, note)
        self.report({"INFO"}, f"Imported {obj.name}")
        return {"FINISHED"}

    def _placement(self) -> Placement:
        x, y, z = self.location
        return Placement(
            collection=self.collection,
            location=(x, y, z),
            step_aside=self.step_aside,
            select=self.select,
            library=self.library,
            lods=self.lods,
            splats=self.splats,
        )


class IM3D_OT_refresh_jobs(bpy.types.Operator):
    """Read the jobs folder again"""

    bl_idname = "im3d.refresh_jobs"
    bl_label = "Refresh Jobs"
    bl_options = {"INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        refresh_jobs(context)
        return {"FINISHED"}


def _draw_import_menu(menu: Any, context: bpy.types.Context) -> None:
    menu.layout.operator(IM3D_OT_import_job.bl_idname, text="IM-3D Job (result.json)")


def attach() -> None:
    bpy.types.TOPBAR_MT_file_import.append(_draw_import_menu)


def detach() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(_draw_import_menu)


CLASSES = [IM3D_OT_import_job, IM3D_OT_refresh_jobs]
