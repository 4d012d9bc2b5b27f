"""What the panel's next job still lacks, and which generator "Automatic" will take. Reads what is in memory only."""

from __future__ import annotations

from dataclasses import dataclass

import bpy
from bpy.app.translations import pgettext_iface as _

from ..core.model_facts import NEEDS, ModelFacts, automatic, generator_label, preferred
from . import backend_state, session
from .preferences import get_preferences

MISSING_SOURCES = {
    "PROMPT": "Write a prompt first.",
    "IMAGE": "Choose an image first.",
    "VIEWS": "Choose a folder of pictures or a video first.",
}


@dataclass(frozen=True)
class Obstacle:
    """Why no job can start.

    Attributes:
        reason: A translated sentence.
        model: The model whose download helps, "" when that is not it.
    """

    reason: str
    model: str = ""


def obstacle(context: bpy.types.Context) -> Obstacle | None:
    """The first thing that the panel's next job lacks, or None."""
    settings = context.scene.im3d
    if not backend_state.is_ready(context):
        return Obstacle(_("Install the backend first."))
    given = {"PROMPT": settings.prompt.strip(), "IMAGE": settings.image, "VIEWS": settings.views}
    if not given[settings.source]:
        return Obstacle(_(MISSING_SOURCES[settings.source]))
    if is_remote(context):
        return None  # which models are there, only the other machine knows
    if settings.source == "PROMPT" and (missing := _missing_image_model()) is not None:
        words = _("Prompts need a text-to-image model ({}, {}).").format(missing.title, missing.size)
        return Obstacle(words, missing.name)
    model = backend_state.model(NEEDS.get(settings.generator, "")) if settings.source != "VIEWS" else None
    if model is not None and not model.installed:
        return Obstacle(_("{} is not downloaded yet.").format(model.title), model.name)
    return None


def is_remote(context: bpy.types.Context) -> bool:
    return bool(get_preferences(context).remote_host.strip())


def generator_text(context: bpy.types.Context) -> str:
    """The generator of the panel's next job, translated; for "Automatic" with what it will take."""
    settings = context.scene.im3d
    label = _(generator_label(settings.generator))
    if settings.generator != "auto" or is_remote(context) or not backend_state.state.models:
        return label
    taken = automatic(backend_state.state.models, has_gpu(), knows_elevation(context))
    return f"{label}: {_(generator_label(taken))}"


def better(context: bpy.types.Context) -> ModelFacts | None:
    """The model that "Automatic" would take if it were downloaded, None when it takes the best already."""
    if context.scene.im3d.generator != "auto" or is_remote(context):
        return None
    best = backend_state.model(preferred(knows_elevation(context))[0])
    return best if best is not None and not best.installed else None


def knows_elevation(context: bpy.types.Context) -> bool:
    """Whether the next job is told the camera's elevation."""
    settings = context.scene.im3d
    return settings.know_elevation and settings.source != "PROMPT"


def has_gpu() -> bool:
    """Whether jobs on this machine run on an NVIDIA GPU: by the backend's own word, else by the build of torch."""
    known = session.current()
    hello = known.queue.backend.hello if known is not None else None
    if hello is not None:
        return " CPU, " not in hello["device"]
    installed = backend_state.state.installed
    return installed is not None and installed.accelerator.startswith("cu")


def _missing_image_model() -> ModelFacts | None:
    models = [model for model in backend_state.state.models if model.purpose == "image"]
    return models[0] if models and not any(model.installed for model in models) else None
