"""The backend in the panel and in the preferences: whether it is there, its models, and what is being fetched."""

from __future__ import annotations

import math

import bpy
from bpy.app.translations import pgettext_iface as _

from ..client.backend import Failure
from ..core.job_request import GENERATORS
from ..core.model_facts import NEEDS, ModelFacts
from ..state import backend_state
from ..state.preferences import BASE_PACKAGE, get_preferences, online
from ..state.readiness import better, generator_text, has_gpu, is_remote
from .remedies import draw_allow_online, draw_download, draw_download_button, draw_model_download, draw_progress
from .wrapping import NESTED_MARGIN, PLAIN_MARGIN, wrapped

# The groups of the list of models.
PURPOSES = {
    "orbit": "Makes the Views",
    "image": "Makes a Picture from Text",
    "mask": "Cuts Out Photographs",
    "loss": "Quality",
}
DEVICES = {"cpu": "the CPU", "mps": "the Apple GPU"}
BETTER = "better"  # where the download of a better generator is shown
INSTALL_BUILDS = {
    "cpu": "The build for the processor: no NVIDIA card with a driver from 560 on was found.",
    "cu126": "The build for NVIDIA cards, CUDA 12.6.",
    "cu130": "The build for NVIDIA cards, CUDA 13.",
    "mps": "The build for Apple silicon.",
}
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
        for purpose, title in PURPOSES.items():
            column = self.layout.column(align=True)
            column.label(text=title)
            for model in (m for m in backend_state.state.models if m.purpose == purpose):
                _draw_model(column, context, model)
        column = self.layout.column(align=True)
        column.operator("im3d.free_memory", icon="TRASH")
        column.operator("im3d.copy_diagnostics", icon="COPYDOWN")
        column.operator("preferences.addon_show", text="Preferences", icon="PREFERENCES").module = BASE_PACKAGE


def draw_backend(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What is missing before jobs can run, and the progress of getting it."""
    state = backend_state.state
    host = get_preferences(context).remote_host.strip()
    if state.installation is not None:
        draw_progress(layout, context, _(state.progress.message) if state.progress else "", _fraction())
    elif host:
        wrapped(layout, context, _("Jobs run on {}").format(host), "URL")
        if not online():
            draw_allow_online(layout, context)
    elif state.installed is None:
        _draw_offer(layout, context)
    else:
        installed = state.installed
        device = _(DEVICES[installed.accelerator]) if installed.accelerator in DEVICES else _("the GPU")
        facts = _("Backend {}, runs on {}").format(installed.version, device)
        wrapped(layout, context, facts if installed.version else _("Development environment"), "CHECKMARK")


def _draw_offer(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What would be installed, how much of it, how long that takes, and where; and why it failed before."""
    state = backend_state.state
    wrapped(layout, context, _("The backend is not installed."), "INFO")
    if state.progress is not None and state.progress.failure is not None:
        _draw_install_failure(layout, context, state.progress.failure)
    if state.no_offer:
        wrapped(layout, context, _("The backend cannot be installed on {}.").format(state.no_offer), "ERROR")
    elif state.offer is not None:
        wrapped(layout, context, _(INSTALL_BUILDS[state.offer.accelerator]))
        gigabytes, seconds = state.offer.download / 1e9, 8 * state.offer.download / 1e8
        size = _("{} GB to download: about {} min at 100 Mbit/s, {} min at 20 Mbit/s.")
        minutes = (math.ceil(seconds / 60), math.ceil(5 * seconds / 60))
        wrapped(layout, context, size.format(f"{gigabytes:.1f}", *minutes))
    if not online():
        draw_allow_online(layout, context)
    elif not state.no_offer:
        row = layout.row()
        row.scale_y = 1.3
        row.operator("im3d.install_backend", icon="IMPORT")
    if state.offer is not None:
        wrapped(layout, context, _("{} GB must be free in this folder:").format(round(state.offer.space / (1 << 30))))
    layout.prop(get_preferences(context), "home", text="")


def _draw_install_failure(layout: bpy.types.UILayout, context: bpy.types.Context, failure: Failure) -> None:
    box = layout.box()
    wrapped(box, context, _(failure.message), "ERROR", NESTED_MARGIN)
    if failure.hint:
        wrapped(box, context, _(failure.hint), margin=NESTED_MARGIN)
    if failure.log:
        box.operator("wm.path_open", text="Show Log", icon="TEXT").filepath = failure.log


def _fraction() -> float | None:
    progress = backend_state.state.progress
    return progress.fraction if progress is not None else None


def _draw_model(layout: bpy.types.UILayout, context: bpy.types.Context, model: ModelFacts) -> None:
    """A model with what it costs: its download, the memory of the GPU, its licence."""
    row = layout.row()
    row.label(text=model.title, icon="CHECKMARK" if model.installed else "BLANK1", translate=False)
    side = row.row()
    side.alignment = "RIGHT"
    if model.installed:
        side.label(text=model.size, translate=False)
    else:
        draw_download_button(side, context, model, "", model.size)
    facts = layout.column()
    facts.active = False
    licence = _(COMMERCIAL_NOTES[model.commercial]) if model.commercial != "yes" else ""
    words = f"{_('{} GB VRAM').format(f'{model.vram_gb:g}')}, {model.licence}. {licence}"
    wrapped(facts, context, words.strip(), "BLANK1", margin=PLAIN_MARGIN)
    draw_model_download(layout, context, model)


def draw_generator(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The choice of what generates the views, over the whole width, since "Automatic" says what it will take."""
    column = layout.column(align=True)
    column.menu("IM3D_MT_generator", text=generator_text(context), translate=False)
    model = backend_state.model(NEEDS.get(context.scene.im3d.generator, ""))
    if model is not None and model.commercial != "yes":
        wrapped(layout, context, _(COMMERCIAL_NOTES[model.commercial]), "INFO", margin=PLAIN_MARGIN)
    best = better(context)
    if best is None or draw_download(layout, context, BETTER, [best.name]):
        return
    if not has_gpu():
        words = _("{} ({}) is better, but needs an NVIDIA GPU with {} GB.").format(
            best.title, best.size, f"{best.vram_gb:g}"
        )
        wrapped(layout, context, words, "INFO", margin=PLAIN_MARGIN)
    elif online():
        draw_download_button(layout, context, best, BETTER, _("Better: {} ({})").format(best.title, best.size))


class IM3D_MT_generator(bpy.types.Menu):
    """What generates the object's views"""

    bl_label = "Generator"

    def draw(self, context: bpy.types.Context) -> None:
        for name, label, _description in GENERATORS:
            model = backend_state.model(NEEDS.get(name, ""))
            text = _(label)
            if model is not None and not model.installed and not is_remote(context):
                text = _("{} (download {})").format(text, model.size)
            self.layout.prop_enum(context.scene.im3d, "generator", name, text=text)


def not_ready(context: bpy.types.Context) -> bool:
    """Whether the panel has to show the backend instead of leaving it to its own panel."""
    return not backend_state.is_ready(context) or backend_state.state.installation is not None


CLASSES = [IM3D_MT_generator, IM3D_PT_models]
