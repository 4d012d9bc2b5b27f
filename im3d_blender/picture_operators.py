"""Pictures into the panel: from the camera, from the clipboard, dropped onto the viewport; and the seed's dice."""

from __future__ import annotations

import random
from pathlib import Path

import bpy

from .job_request import MAX_SEED, PICTURES
from .pictures import PictureError, image_from_clipboard, picture_from_camera


class IM3D_OT_picture_from_camera(bpy.types.Operator):
    """Take what the scene's camera sees as the image"""

    bl_idname = "im3d.picture_from_camera"
    bl_label = "From the Active Camera"
    bl_options = {"REGISTER", "UNDO"}

    size: bpy.props.IntProperty(
        name="Size", description="Side of the square picture in pixels", default=1024, min=64, max=4096
    )
    viewport: bpy.props.BoolProperty(
        name="As in the Viewport", description="Draw the picture as the viewport does; otherwise render it"
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            path = picture_from_camera(context, self.size, self.viewport)
        except (PictureError, RuntimeError) as error:
            self.report({"ERROR"}, str(error).strip())
            return {"CANCELLED"}
        _choose(context, bpy.data.images.load(str(path)))
        return {"FINISHED"}


class IM3D_OT_paste_picture(bpy.types.Operator):
    """Take the picture in the clipboard, or the picture file whose path it holds, as the image"""

    bl_idname = "im3d.paste_picture"
    bl_label = "Paste"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            _choose(context, image_from_clipboard(context))
        except (PictureError, RuntimeError) as error:
            self.report({"ERROR"}, str(error).strip())
            return {"CANCELLED"}
        return {"FINISHED"}


class IM3D_OT_drop_pictures(bpy.types.Operator):
    """Make an object from every dropped picture, with the panel's settings"""

    bl_idname = "im3d.drop_pictures"
    bl_label = "Generate 3D from Image"

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})
    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE"})
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        paths = [Path(self.directory) / file.name for file in self.files if file.name] or [Path(self.filepath)]
        wrong = [path.name for path in paths if not path.is_file() or path.suffix.lower() not in PICTURES]
        if wrong:
            self.report({"ERROR"}, f"{wrong[0]} is not a picture that IM-3D reads.")
            return {"CANCELLED"}
        for path in paths:
            bpy.ops.im3d.generate("INVOKE_DEFAULT", image=str(path))
        _choose(context, bpy.data.images.load(str(paths[-1]), check_existing=True))
        return {"FINISHED"}


class IM3D_OT_roll_seed(bpy.types.Operator):
    """Draw another seed"""

    bl_idname = "im3d.roll_seed"
    bl_label = "Another Seed"
    bl_options = {"REGISTER", "UNDO", "INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.im3d.seed = random.randint(0, MAX_SEED)
        return {"FINISHED"}


def _choose(context: bpy.types.Context, image: bpy.types.Image) -> None:
    settings = context.scene.im3d
    settings.source = "IMAGE"
    settings.image = image


CLASSES: list[type] = [
    IM3D_OT_picture_from_camera,
    IM3D_OT_paste_picture,
    IM3D_OT_drop_pictures,
    IM3D_OT_roll_seed,
]

if hasattr(bpy.types, "FileHandler"):  # since 4.1

    class IM3D_FH_pictures(bpy.types.FileHandler):
        """Offers to make an object of pictures that are dropped onto the viewport."""

        bl_idname = "IM3D_FH_pictures"
        bl_label = "Generate 3D from image (IM-3D)"
        bl_import_operator = "im3d.drop_pictures"
        bl_file_extensions = ";".join(sorted(PICTURES))

        @classmethod
        def poll_drop(cls, context: bpy.types.Context) -> bool:
            return context.area is not None and context.area.type == "VIEW_3D"

    CLASSES.append(IM3D_FH_pictures)
