"""What helps, as buttons: a remedy of `im3d.errors`, or the download that was started here, with its progress."""

from __future__ import annotations

from collections.abc import Sequence

import bpy
from bpy.app.translations import pgettext_iface as _

from ..core.model_facts import ModelFacts
from ..state import backend_state
from ..state.preferences import get_preferences, online
from .wrapping import NESTED_MARGIN, fits, wrapped


def draw_remedy(layout: bpy.types.UILayout, context: bpy.types.Context, remedy: str, place: str) -> None:
    """The buttons of a remedy that gets a model; the others belong to jobs and are drawn with them.

    Args:
        remedy: As `im3d.errors` lists them.
        place: Where a download that is started here is shown; see `backend_state.BackendState`.
    """
    verb, _space, names = remedy.partition(" ")
    if verb not in ("download", "licence", "token"):
        return
    if draw_download(layout, context, place, names.split()):
        return
    if not online():
        draw_allow_online(layout, context)
        return
    for model in filter(None, map(backend_state.model, names.split())):
        if verb == "token":
            draw_account(layout, context, model)
        draw_download_button(layout, context, model, place)


def draw_download(layout: bpy.types.UILayout, context: bpy.types.Context, place: str, models: Sequence[str]) -> bool:
    """The download of one of these models that was started here: its progress, or why it failed and what helps.

    Returns:
        Whether there is one.
    """
    state = backend_state.state
    if state.task is None or state.task_place != place or state.task_model not in models:
        return False
    _draw_task(layout, context)
    return True


def draw_model_download(layout: bpy.types.UILayout, context: bpy.types.Context, model: ModelFacts) -> None:
    """The same in the list of models, wherever the download was started."""
    if backend_state.state.task is not None and backend_state.state.task_model == model.name:
        _draw_task(layout.column(), context)


def _draw_task(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    state = backend_state.state
    task, model = state.task, backend_state.model(state.task_model)
    if task is None:
        return
    if not task.state.done:
        draw_progress(layout, context, _("Downloading {}").format(task.title), task.state.fraction)
    elif task.state.error:
        wrapped(layout, context, task.state.error, "ERROR")
        if model is not None:
            if task.state.remedy.startswith("token"):
                draw_account(layout, context, model)
            draw_download_button(layout, context, model, state.task_place)


def draw_progress(
    layout: bpy.types.UILayout, context: bpy.types.Context, message: str, fraction: float | None, cancel: str = ""
) -> None:
    """What is under way, with the button that stops it.

    Args:
        cancel: That button's operator; "" is that of installations and downloads.
    """
    box = layout.box()
    wrapped(box, context, message or _("Starting"), "IMPORT", margin=NESTED_MARGIN)
    if fraction is not None:
        box.progress(factor=fraction, text=f"{fraction:.0%}")
    box.operator(cancel or "im3d.cancel_install", text="Stop", icon="X")


def draw_download_button(
    layout: bpy.types.UILayout, context: bpy.types.Context, model: ModelFacts, place: str, text: str = ""
) -> None:
    """A button that downloads a model, after its licence was shown."""
    if not text:
        name = _("Background Remover") if model.purpose == "mask" else model.title
        # The icon says "download" as well, where there is no room for the word.
        words = _("Download {} ({})").format(name, model.size)
        text = words if fits(context, words) else f"{name} ({model.size})"
    operator = layout.operator("im3d.download_model", text=text, icon="IMPORT", translate=False)
    operator.model, operator.place = model.name, place


def draw_account(layout: bpy.types.UILayout, context: bpy.types.Context, model: ModelFacts) -> None:
    """The page of a model that asks for an account, and the field for the account's token."""
    layout.operator("wm.url_open", text="Model Page", icon="URL").url = model.page
    layout.label(text="Hugging Face Token")
    layout.prop(get_preferences(context), "token", text="")


def draw_allow_online(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Downloads need a permission that only the user gives."""
    wrapped(layout, context, _("Online access is switched off in Blender."), "INTERNET")
    layout.operator("screen.userpref_show", text="System Preferences", icon="PREFERENCES").section = "SYSTEM"
