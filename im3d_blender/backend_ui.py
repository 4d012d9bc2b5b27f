"""The backend in the panel and in the preferences: whether it is there, its models, and what is being fetched."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from . import backend_state
from .errors_ui import draw_allow_online
from .model_facts import ModelFacts
from .preferences import get_preferences, online
from .wrapping import wrapped

COMMERCIAL_NOTES = {"no": "Not for commercial use.", "conditions": "Commercial use under conditions."}


class IM3D_PT_models(bpy.types.Panel):
    bl_label = "Backend"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"
    bl_order = 3
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        draw_backend(self.layout, context)
        column = self.layout.column(align=True)
        for model in backend_state.state.models:
            _draw_model(column, model)
        column = self.layout.column(align=True)
        column.operator("im3d.free_memory", icon="TRASH")
        column.operator("im3d.copy_diagnostics", icon="COPYDOWN")
        column.operator("preferences.addon_show", text="Preferences", icon="PREFERENCES").module = get_preferences(
            context
        ).bl_idname


def draw_backend(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is missing before jobs can run, and the progress of getting it."""
    state = backend_state.state
    host = get_preferences(context).remote_host.strip()
    if state.installation is not None:
        _draw_progress(layout, context, state.progress.message if state.progress else "", _fraction())
    elif host:
        layout.label(text=_("Jobs run on {}").format(host), icon="URL", translate=False)
        if not online():
            draw_allow_online(layout, context)
    elif state.installed is None:
        wrapped(layout, context, _("The backend is not installed."), "INFO")
        if state.progress is not None and state.progress.failure is not None:
            wrapped(layout, context, state.progress.failure.message, "ERROR")
            wrapped(layout, context, state.progress.failure.hint)
        if online():
            row = layout.row()
            row.scale_y = 1.3
            row.operator("im3d.install_backend", icon="IMPORT")
        else:
            draw_allow_online(layout, context)
        layout.prop(get_preferences(context), "home", text="")
    else:
        installed = state.installed
        layout.label(text=f"{installed.version}  {installed.accelerator}", icon="CHECKMARK", translate=False)
    if state.task is not None:
        if not state.task.state.done:
            _draw_progress(layout, context, state.task.title, state.task.state.fraction)
        elif state.task.state.error:
            wrapped(layout, context, state.task.state.error, "ERROR")


def _fraction() -> float | None:
    progress = backend_state.state.progress
    return progress.fraction if progress is not None else None


def _draw_progress(
    layout: bpy.types.UILayout, context: bpy.types.Context, message: str, fraction: float | None
) -> None:
    box = layout.box()
    wrapped(box, context, message or _("Starting"), "IMPORT")
    if fraction is not None:
        box.progress(factor=fraction, text=f"{fraction:.0%}")
    box.operator("im3d.cancel_install", icon="X")


def _draw_model(layout: bpy.types.UILayout, model: ModelFacts) -> None:
    row = layout.row()
    row.label(text=model.title, icon="CHECKMARK" if model.installed else "BLANK1", translate=False)
    if not model.installed:
        button = row.row()
        button.alignment = "RIGHT"
        button.operator("im3d.download_model", text=model.size, icon="IMPORT", translate=False).model = model.name


def draw_prompt_needs(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """A prompt becomes a picture first, by a model of its own."""
    models = [model for model in backend_state.state.models if model.purpose == "image"]
    if models and not any(model.installed for model in models):
        wrapped(layout, context, _("A prompt needs a model that draws pictures."), "INFO")
        operator = layout.operator("im3d.download_model", text=_("Download {}").format(models[0].size), icon="IMPORT")
        operator.model = models[0].name


def draw_generator_needs(layout: bpy.types.UILayout, context: bpy.types.Context, generator: str) -> None:
    """What the chosen generator still needs, and the conditions that come with it."""
    model = backend_state.model(generator)
    if model is None:
        return
    if not model.installed:
        operator = layout.operator("im3d.download_model", text=_("Download {}").format(model.size), icon="IMPORT")
        operator.model = model.name
    if model.commercial != "yes":
        wrapped(layout, context, _(COMMERCIAL_NOTES[model.commercial]), "INFO")


def not_ready(context: bpy.types.Context) -> bool:
    """Whether the panel has to show the backend instead of leaving it to its own panel."""
    return not backend_state.is_ready(context) or backend_state.state.installation is not None


CLASSES = [IM3D_PT_models]
