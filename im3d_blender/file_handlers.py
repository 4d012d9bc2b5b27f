"""Pictures dropped onto the viewport (Blender 4.1 and newer)."""

from __future__ import annotations

from pathlib import Path

import bpy

from .job_request import PICTURES


class IM3D_OT_drop_picture(bpy.types.Operator):
    """Make a textured object from this picture"""

    bl_idname = "im3d.drop_picture"
    # The entry of the menu that a drop opens.
    bl_label = "Generate 3D from image"
    bl_options = {"INTERNAL"}

    filepath: bpy.props.StringProperty(name="Picture", subtype="FILE_PATH", options={"SKIP_SAVE"})

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Shows the picture in the panel and starts the job with what the panel says."""
        try:
            image = bpy.data.images.load(self.filepath, check_existing=True)
        except RuntimeError:
            self.report({"ERROR"}, f"{Path(self.filepath).name} is not a picture that Blender reads.")
            return {"CANCELLED"}
        settings = context.scene.im3d
        settings.source, settings.image = "IMAGE", image
        return bpy.ops.im3d.generate("INVOKE_DEFAULT")

    def execute(self, context: bpy.types.Context) -> set[str]:
        return bpy.ops.im3d.generate(image=self.filepath)


CLASSES: list[type] = [IM3D_OT_drop_picture]

if hasattr(bpy.types, "FileHandler"):

    class IM3D_FH_picture(bpy.types.FileHandler):
        bl_idname = "IM3D_FH_picture"
        bl_label = IM3D_OT_drop_picture.bl_label
        bl_import_operator = IM3D_OT_drop_picture.bl_idname
        bl_file_extensions = ";".join(sorted(PICTURES))

        @classmethod
        def poll_drop(cls, context: bpy.types.Context) -> bool:
            return context.area is not None and context.area.type == "VIEW_3D"

    CLASSES.append(IM3D_FH_picture)
