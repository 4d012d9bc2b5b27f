"""Pictures dropped onto the viewport."""

from __future__ import annotations

from pathlib import Path

import bpy

from .job_request import PICTURES


class IM3D_OT_drop_pictures(bpy.types.Operator):
    """Make an object from every dropped picture, with the panel's settings"""

    bl_idname = "im3d.drop_pictures"
    # The entry of the menu that a drop opens.
    bl_label = "Generate 3D from image"
    bl_options = {"INTERNAL"}

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})
    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE"})
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Shows the last picture in the panel and starts a job for each."""
        paths = [Path(self.directory) / file.name for file in self.files if file.name] or [Path(self.filepath)]
        try:
            images = [bpy.data.images.load(str(path), check_existing=True) for path in paths]
        except RuntimeError as error:
            self.report({"ERROR"}, str(error).strip())
            return {"CANCELLED"}
        settings = context.scene.im3d
        settings.source, settings.image = "IMAGE", images[-1]
        for path in paths:
            bpy.ops.im3d.generate("INVOKE_DEFAULT", image=str(path))
        return {"FINISHED"}


class IM3D_FH_pictures(bpy.types.FileHandler):
    bl_idname = "IM3D_FH_pictures"
    bl_label = IM3D_OT_drop_pictures.bl_label
    bl_import_operator = IM3D_OT_drop_pictures.bl_idname
    bl_file_extensions = ";".join(sorted(PICTURES))

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"


CLASSES = [IM3D_OT_drop_pictures, IM3D_FH_pictures]
