"""Saves a finished mesh as a .blend of its own; runs under Blender or a Python that has bpy.

    python save_blend.py TASK.json        blender -b --factory-startup -P save_blend.py -- TASK.json

TASK.json: mesh (GLB), name, blend (file to write), importing (path of the add-on's importing.py), size (pixels of a
render). The file holds the object at the origin, a camera, a light and a world: F12 gives a picture. It opens in a
viewport that shows the texture.
"""

import json
import os
import sys
from pathlib import Path

import bpy

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import studio


def main(path):
    with open(path, encoding="utf-8") as file:
        task = json.load(file)
    scene = studio.empty_scene()
    importing = studio.load_importing(task["importing"])
    collection = bpy.data.collections.new("Collection")
    scene.collection.children.link(collection)
    obj = importing.import_mesh(bpy.context, Path(task["mesh"]), task["name"], collection=collection.name, select=True)
    studio.set_up(obj, task["size"])
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 128
    scene.cycles.use_denoising = studio.has_denoiser()
    show_texture(obj)
    bpy.ops.wm.save_as_mainfile(filepath=task["blend"], compress=True, check_existing=False)


def show_texture(obj):
    """Turns the file's viewports to the object, textured."""
    size = max(obj.dimensions)
    for screen in bpy.data.screens:
        for area in screen.areas:
            for space in area.spaces:
                if space.type == "VIEW_3D":
                    space.shading.type = "MATERIAL"
                    space.clip_start, space.clip_end = size / 1000, max(1000.0, 100 * size)
                    view = space.region_3d
                    view.view_perspective = "PERSP"
                    view.view_rotation = bpy.context.scene.camera.rotation_euler.to_quaternion()
                    view.view_location = (obj.location.x, obj.location.y, obj.location.z + obj.dimensions.z / 2)
                    view.view_distance = 2.5 * size


if __name__ == "__main__":
    main(sys.argv[-1])
