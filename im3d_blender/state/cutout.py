"""Removing an image's background before the job: a command of the backend, beside the jobs, so that Blender goes on.

The image stays what it is. Its cut-out is a file of its own among the jobs' inputs and a second image in the .blend,
which the panel shows and the next job uses in its place until another image or mask is chosen, or the background is
restored.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

import bpy

from ..client.tasks import Task, TaskState
from ..scene.pictures import image_file
from . import backend_state
from .preferences import inputs_folder


@dataclass
class CutoutState:
    """The cut-out under way, or the last one if it failed or had something to say.

    Attributes:
        task: The command, None when there is none.
        scene, image, mask: Names of what it was started for.
        warnings: What the user should know about the last cut-out, a sentence each.
    """

    task: Task | None = None
    scene: str = ""
    image: str = ""
    mask: str = ""
    warnings: list[str] = field(default_factory=list)


state = CutoutState()


def start(context: bpy.types.Context) -> None:
    """Starts cutting out the object of the panel's image.

    Raises:
        PictureError: The image or the mask has no pixels.
    """
    cancel()
    settings = context.scene.im3d
    image, mask = settings.image, settings.mask
    if image is None:
        return
    picture = image_file(image.name, inputs_folder(context))
    out = inputs_folder(context) / f"cutout_{uuid.uuid4().hex[:8]}" / f"{Path(image.name).stem}.png"
    arguments = ["cutout", picture, "--out", str(out), "--json"]
    if mask is not None:
        arguments += ["--mask", image_file(mask.name, inputs_folder(context))]
    settings.cutout = None
    state.scene, state.image, state.mask = context.scene.name, image.name, mask.name if mask is not None else ""
    state.task = backend_state.start_tool(context, image.name, arguments)


def cancel() -> None:
    """Stops what is under way and forgets the last failure."""
    if state.task is not None:
        state.task.cancel()
    state.task, state.warnings = None, []


def is_working() -> bool:
    return state.task is not None and not state.task.state.done


def failure(context: bpy.types.Context) -> TaskState | None:
    """How the last cut-out failed, if it did and its image is still chosen."""
    failed = state.task is not None and state.task.state.done and _is_still_chosen(context.scene)
    return state.task.state if state.task is not None and failed else None


def advance(context: bpy.types.Context) -> bool:
    """Polls the command; True when the panel has something new to show."""
    if state.task is None or state.task.state.done:
        return False
    answer = state.task.poll()
    if not answer.done:
        return False
    if not answer.error and answer.result is not None:
        state.task = None
        scene = bpy.data.scenes.get(state.scene)
        if scene is not None and _is_still_chosen(scene):
            state.warnings = [str(warning) for warning in answer.result.get("warnings", [])]
            _show(scene, Path(str(answer.result["path"])))
    return True


def _is_still_chosen(scene: bpy.types.Scene) -> bool:
    settings = scene.im3d
    names = tuple(block.name if block is not None else "" for block in (settings.image, settings.mask))
    return (scene.name, *names) == (state.scene, state.image, state.mask)


def _show(scene: bpy.types.Scene, path: Path) -> None:
    image = bpy.data.images.load(str(path))
    image.preview_ensure()
    scene.im3d.cutout = image
    windows = bpy.context.window_manager.windows
    if windows:  # timers run without one
        with bpy.context.temp_override(window=windows[0]):
            bpy.ops.ed.undo_push(message="Remove Background")
