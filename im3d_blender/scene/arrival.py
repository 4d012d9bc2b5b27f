"""A finished job's object arrives in the scene that asked for it, with all that was asked for beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import bpy

from ..core.finished_jobs import FinishedJob, read_job
from ..core.model_facts import licence_of, read_models
from ..core.placement import Placement
from . import assets, importing, lods, splats
from .free_place import step_aside


def busy(context: bpy.types.Context) -> bool:
    """Whether an object must not arrive now: somebody is in the middle of something that the import would end."""
    if bpy.app.is_job_running("RENDER"):
        return True
    active = context.view_layer.objects.active if context.view_layer else None
    return active is not None and active.mode != "OBJECT"


def place(
    context: bpy.types.Context,
    job: FinishedJob,
    placement: Placement,
    home: Path,
    *,
    name: str = "",
    height: float = 0.0,
) -> tuple[bpy.types.Object, list[str]]:
    """Imports the job's mesh and adds what the placement asks for. Pushes no undo step.

    Args:
        home: Folder of the backend, where the licences of installed models are noted.
        name: Name of the object; "" takes the job's.
        height: Metres; 0 takes the job's.

    Returns:
        The object, and a sentence for everything beside it that did not work.

    Raises:
        ImportFailedError: The mesh could not be imported; the scene is as it was.
    """
    notes: list[str] = []
    if placement.make_collection:
        _make_collection(context.scene, placement.collection)
    obj = importing.import_mesh(
        context,
        job.mesh,
        name or job.name,
        location=placement.location,
        height=height or job.height_m,
        collection=placement.collection,
        select=placement.select,
    )
    if placement.step_aside:
        step_aside(context, obj)
    beside: list[bpy.types.Object] = []
    if placement.lods:
        beside += lods.add_levels(context, obj)
    if placement.splats and job.splats is not None:
        try:
            beside.append(splats.add_points(obj, job.splats, job.orbit_from_glb, job.height_m))
        except splats.SplatsError as error:
            notes.append(str(error))
    _hide(context, beside)
    if placement.library:
        assets.mark_asset(obj, job, licence_of(job.generator, read_models(home)))
        if placement.library != assets.THIS_FILE:
            try:
                assets.save_to_library(context, obj, placement.library)
            except assets.AssetError as error:
                notes.append(str(error))
    return obj, notes


def _hide(context: bpy.types.Context, objects: Iterable[bpy.types.Object]) -> None:
    """Hides what would flicker in the object's own place; the eye in the outliner shows it."""
    layer = context.view_layer
    layer.update()
    for obj in objects:
        obj.hide_render = True
        # One in a collection that the view layer leaves out is not seen anyway.
        if layer.objects.get(obj.name) == obj:
            obj.hide_set(True, view_layer=layer)


def _make_collection(scene: bpy.types.Scene, name: str) -> None:
    if not any(c.name == name for c in scene.collection.children_recursive):
        known = bpy.data.collections.get(name)
        scene.collection.children.link(known if known is not None else bpy.data.collections.new(name))


def deliver(
    context: bpy.types.Context, folder: Path, placement: Placement, home: Path
) -> tuple[bpy.types.Object, list[str]]:
    """`place`, called from anywhere: in the placement's scene, as one undo step.

    Raises:
        JobError: The folder holds no finished job.
        ImportFailedError: The mesh could not be imported; the scene is as it was.
    """
    job = read_job(folder)
    with _in_scene(context, placement.scene):
        obj, notes = place(bpy.context, job, placement, home)
        bpy.ops.ed.undo_push(message=f"IM-3D: {obj.name}"[:60])
    return obj, notes


@contextlib.contextmanager
def _in_scene(context: bpy.types.Context, name: str) -> Iterator[None]:
    """A context whose scene is the one of that name, in a window that shows it if there is one.

    A scene that was removed since is replaced by the one that is shown.
    """
    windows = list(context.window_manager.windows)
    showing = [w for w in windows if w.scene.name == name] or ([] if name in bpy.data.scenes else windows)
    if showing:
        with context.temp_override(window=showing[0]):
            yield
    elif name in bpy.data.scenes:
        scene = bpy.data.scenes[name]
        with context.temp_override(scene=scene, view_layer=scene.view_layers[0]):
            yield
    else:
        yield
