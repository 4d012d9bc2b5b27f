"""Pictures into the panel, from the camera and the clipboard, and without their background; and the seed's dice."""

from __future__ import annotations

import time

import bpy

from ..core.job_request import random_seed
from ..scene.pictures import PictureError, image_from_clipboard, picture_from_camera
from ..state import backend_state, cutout
from ..state.preferences import inputs_folder


class IM3D_OT_picture_from_camera(bpy.types.Operator):
    """Take what the camera sees as the image, or what the viewport shows where there is no camera"""

    bl_idname = "im3d.picture_from_camera"
    bl_label = "From the Active Camera"
    bl_options = {"REGISTER", "UNDO"}

    size: bpy.props.IntProperty(
        name="Size", description="Side of the square picture in pixels", default=1024, min=64, max=4096
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            path = picture_from_camera(context, self.size, inputs_folder(context))
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


class IM3D_OT_remove_background(bpy.types.Operator):
    """Cut the object out of the image now, to see what the job will use. The image itself stays"""

    bl_idname = "im3d.remove_background"
    bl_label = "Remove Background"
    bl_options = {"REGISTER", "INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.scene.im3d.image is not None and backend_state.is_ready(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            cutout.start(context)
        except PictureError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        # A window's timer hears of the end; without one somebody has to wait for it.
        while bpy.app.background and cutout.is_working():
            time.sleep(0.05)
            cutout.advance(context)
        failure = cutout.failure(context)
        if failure is not None:
            self.report({"ERROR"}, failure.error)
            return {"CANCELLED"}
        return {"FINISHED"}


class IM3D_OT_restore_background(bpy.types.Operator):
    """Use the image as it is; the job cuts the object out itself"""

    bl_idname = "im3d.restore_background"
    bl_label = "Restore Background"
    bl_options = {"REGISTER", "UNDO", "INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        cutout.cancel()
        context.scene.im3d.cutout = None
        return {"FINISHED"}


class IM3D_OT_roll_seed(bpy.types.Operator):
    """Pick another seed at random"""

    bl_idname = "im3d.roll_seed"
    bl_label = "Another Seed"
    bl_options = {"REGISTER", "UNDO", "INTERNAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.im3d.seed = random_seed()
        return {"FINISHED"}


def _choose(context: bpy.types.Context, image: bpy.types.Image) -> None:
    settings = context.scene.im3d
    settings.source = "IMAGE"
    settings.image = image


CLASSES = [
    IM3D_OT_picture_from_camera,
    IM3D_OT_paste_picture,
    IM3D_OT_remove_background,
    IM3D_OT_restore_background,
    IM3D_OT_roll_seed,
]
