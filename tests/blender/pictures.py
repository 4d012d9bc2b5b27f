"""Runs inside Blender, as inside.py does: pictures out of Blender, and splats as points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import bpy
import numpy as np
from generating import module
from inside import PACKAGE, empty_scene, install, main


def exported(extension: str, jobs: str) -> dict[str, Any]:
    """The files of a drawn image, of a float image, of a file, and of one without pixels."""
    install(extension)
    empty_scene()
    pictures, folder = module("scene.pictures"), Path(jobs)
    drawn = bpy.data.images.new("drawn", 3, 2, alpha=True)
    drawn.pixels = [k / 24 for k in range(24)]
    linear = bpy.data.images.new("linear", 1, 1, float_buffer=True)
    linear.pixels = [0.5, 0.0, 1.0, 1.0]
    path = pictures.export_image(drawn, folder)
    again = pictures.export_image(drawn, folder)
    loaded = bpy.data.images.load(str(path))
    missing = bpy.data.images.new("missing", 1, 1)
    missing.source, missing.filepath = "FILE", str(folder / "gone.png")
    empty = bpy.data.images.new("empty", 1, 1)
    empty.source = "FILE"  # of none
    return {
        "drawn": str(path), "again": str(again), "linear": str(pictures.export_image(linear, folder)),
        "own_file": str(pictures.export_image(loaded, folder)),
        "gone": _refusal(missing, folder), "empty": _refusal(empty, folder),
    }  # fmt: skip


def _refusal(image: bpy.types.Image, folder: Path) -> str:
    """Why an image becomes no file."""
    pictures = module("scene.pictures")
    try:
        pictures.export_image(image, folder)
    except pictures.PictureError as error:
        return str(error)
    return ""


def camera(extension: str, jobs: str) -> dict[str, Any]:
    """What the camera sees becomes the panel's image; the render settings are as they were."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 1
    scene.render.image_settings.file_format = "JPEG"
    try:
        bpy.ops.im3d.picture_from_camera(size=64)
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    bpy.ops.mesh.primitive_cube_add(size=1)
    bpy.ops.object.camera_add(location=(0, -5, 0), rotation=(np.pi / 2, 0, 0))
    scene.camera = bpy.context.object
    before = settings_of(scene)
    bpy.ops.im3d.picture_from_camera(size=64)
    return {
        "refused": refused, "unchanged": settings_of(scene) == before, "source": scene.im3d.source,
        "file": bpy.path.abspath(scene.im3d.image.filepath),
    }  # fmt: skip


def settings_of(scene: bpy.types.Scene) -> list[Any]:
    render, image = scene.render, scene.render.image_settings
    return [
        render.filepath, render.resolution_x, render.resolution_y, render.film_transparent, image.file_format,
        image.color_mode, getattr(image, "media_type", ""),
    ]  # fmt: skip


def photograph(extension: str, photo: str) -> dict[str, Any]:
    """A photograph that lies on its side in its file stands in the panel."""
    install(extension)
    empty_scene()
    image = bpy.data.images.load(photo)
    bpy.context.scene.im3d.image = image
    width, height = image.preview.image_size
    pixels = np.empty(4 * width * height, np.float32)
    image.preview.image_pixels_float.foreach_get(pixels)
    top_left = pixels.reshape(height, width, 4)[::-1][height // 8, width // 8]
    return {"size": [width, height], "top_left": top_left.tolist(), "images": len(bpy.data.images)}


def points(extension: str, job: str) -> dict[str, Any]:
    """The splats stand where the mesh stands, at the height that was asked for."""
    install(extension)
    empty_scene()
    bpy.ops.im3d.import_job(filepath=job, height=0.5, splats=True)
    (obj,) = (o for o in bpy.data.objects if o.parent is None)
    (child,) = obj.children
    co = np.empty(3 * len(child.data.vertices), np.float32)
    child.data.vertices.foreach_get("co", co)
    colors = np.empty(4 * len(child.data.vertices), np.float32)
    child.data.attributes["Color"].data.foreach_get("color_srgb", colors)
    radii = np.empty(len(child.data.vertices), np.float32)
    child.data.attributes["radius"].data.foreach_get("value", radii)
    hidden = child.hide_get() and child.hide_render and not child.hide_viewport
    child.hide_set(False)
    bpy.context.view_layer.update()
    graph = bpy.context.evaluated_depsgraph_get()
    instances = [i.object.type for i in graph.object_instances if i.object.name == child.name]
    return {
        "points": co.reshape(-1, 3).tolist(), "colors": colors.reshape(-1, 4).tolist(), "radii": radii.tolist(),
        "hidden": hidden, "drawn": instances, "corners": [list(v.co) for v in obj.data.vertices],
    }  # fmt: skip


if __name__ == "__main__":
    main(globals())
