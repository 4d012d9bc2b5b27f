"""The panel that asks for a new object. Drawing reads properties and what is in memory, never the disk."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from ..state import cutout
from ..state.properties import IM3D_PG_scene
from ..state.readiness import is_remote, obstacle
from .backend import draw_backend, draw_generator, not_ready
from .remedies import draw_progress, draw_remedy
from .wrapping import PLAIN_MARGIN, wrapped

IMAGE_SCALE = 6.0


class IM3D_PT_main(bpy.types.Panel):
    bl_label = "IM-3D"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"
    bl_order = 0

    def draw(self, context: bpy.types.Context) -> None:
        layout, settings = self.layout, context.scene.im3d
        if not_ready(context):
            draw_backend(layout.box(), context)
        layout.row(align=True).prop(settings, "source", expand=True)
        {"PROMPT": _draw_prompt, "IMAGE": _draw_image, "VIEWS": _draw_views}[settings.source](layout, context, settings)

        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        if settings.source != "VIEWS":
            draw_generator(column, context)
        column.prop(settings, "preset")
        row = column.row(align=True)
        row.prop(settings, "seed")
        row.operator("im3d.roll_seed", text="", icon="FILE_REFRESH")
        row.prop(settings, "lock_seed", text="", icon="LOCKED" if settings.lock_seed else "UNLOCKED")
        column.prop(settings, "height")
        _draw_details(layout, context, settings)

        missing = obstacle(context)
        button = layout.row()
        button.scale_y = 1.8
        button.enabled = missing is None
        button.operator("im3d.generate", text="Generate", icon="MESH_MONKEY")
        if missing is not None:
            wrapped(layout, context, missing.reason, "INFO", margin=PLAIN_MARGIN)
            if missing.model:
                draw_remedy(layout, context, f"download {missing.model}", "generate")


def _draw_prompt(layout: bpy.types.UILayout, context: bpy.types.Context, settings: IM3D_PG_scene) -> None:
    row = layout.row()
    row.scale_y = 1.2
    row.prop(settings, "prompt", text="", placeholder="One object, in a sentence")
    if len(settings.prompt) > 20:
        # The field shows one line, the rest of a sentence would be hidden.
        note = layout.column()
        note.active = False
        wrapped(note, context, settings.prompt, margin=PLAIN_MARGIN)


def _draw_image(layout: bpy.types.UILayout, context: bpy.types.Context, settings: IM3D_PG_scene) -> None:
    column = layout.column(align=True)
    shown = settings.cutout or settings.image
    if shown is not None and shown.preview is not None:
        column.template_icon(icon_value=shown.preview.icon_id, scale=IMAGE_SCALE)
    column.template_ID(settings, "image", open="image.open")
    row = column.row(align=True)
    row.operator("im3d.picture_from_camera", text="Camera", icon="CAMERA_DATA")
    row.operator("im3d.paste_picture", text="Paste", icon="PASTEDOWN")
    if settings.image is not None:
        mask = layout.column(align=True)  # beside its label there is no room for a file's name
        mask.label(text="Mask")
        mask.template_ID(settings, "mask", open="image.open")
        if not is_remote(context):
            _draw_cutout(layout, context, settings)


def _draw_cutout(layout: bpy.types.UILayout, context: bpy.types.Context, settings: IM3D_PG_scene) -> None:
    """Removing the background before the job: the button, its progress, its result, or what helps when it failed."""
    if cutout.is_working():
        draw_progress(layout, context, _("Removing the background"), None, "im3d.restore_background")
        return
    if settings.cutout is not None:
        layout.operator("im3d.restore_background", icon="LOOP_BACK")
        for warning in cutout.state.warnings:
            wrapped(layout, context, warning, "INFO", margin=PLAIN_MARGIN)
        return
    layout.operator("im3d.remove_background", icon="IMAGE_ALPHA")
    failure = cutout.failure(context)
    if failure is not None:
        box = layout.box()
        wrapped(box, context, failure.error, "ERROR")
        draw_remedy(box, context, failure.remedy, "cutout")


def _draw_views(layout: bpy.types.UILayout, context: bpy.types.Context, settings: IM3D_PG_scene) -> None:
    layout.prop(settings, "views", text="")
    if not settings.views:
        note = layout.column()
        note.active = False
        wrapped(note, context, _("A folder with pictures from all around, or a turntable video."), margin=PLAIN_MARGIN)


def _draw_details(layout: bpy.types.UILayout, context: bpy.types.Context, settings: IM3D_PG_scene) -> None:
    """The less common settings, folded away until they are wanted."""
    header, body = layout.panel_prop(settings, "show_details")
    header.label(text="Details")
    if body is None:
        return
    column = body.column()
    column.use_property_split = True
    column.use_property_decorate = False
    column.prop(settings, "name")
    column.prop(settings, "faces")
    column.prop(settings, "texture_size")
    column.prop(settings, "place")
    column = body.column(align=True)
    if settings.source == "IMAGE":
        column.prop(settings, "recenter")
    if settings.source != "PROMPT":
        column.prop(settings, "know_elevation")
        if settings.know_elevation:
            column.prop(settings, "elevation")
    column.prop(settings, "lods")
    column.prop(settings, "splats")
    column.prop(settings, "as_asset")
    if settings.as_asset:
        libraries = context.preferences.filepaths.asset_libraries
        if libraries:
            column.prop_search(settings, "library", context.preferences.filepaths, "asset_libraries", text="")
        else:
            column.operator("preferences.asset_library_add", text="Add Asset Library", icon="ADD")
    body.operator("im3d.batch", icon="FILE_TEXT")


CLASSES = [IM3D_PT_main]
