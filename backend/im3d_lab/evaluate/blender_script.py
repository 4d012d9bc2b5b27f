"""Renders views of objects with Cycles; runs as its own process under Blender or a Python that has bpy.

    python blender_script.py JOBS.json        blender -b --factory-startup -P blender_script.py -- JOBS.json

Imports nothing of im3d. JOBS.json holds {"tasks": [...]}; each task:

    scene      .npz of parts in world coordinates (`write_parts` in render.py), or a file that Blender imports.
    matrix     4×4 applied to what Blender imported, or null: centre the bounding box and make its longest side 1.
    cameras    4×4 matrices, camera → world, OpenCV axes.
    fov_deg, size, samples
    shading    "albedo" or "normals" (world normals, n/2 + 1/2).
    folder     receives view_000.png … and surface.npz (vertices (V, 3) float32, faces (F, 3) int32, world).

Albedo is rendered as emission: no light, no shadow, so that a colour in the texture is the colour in the picture.
Pictures are RGBA, 8 bit, straight alpha.
"""

import json
import math
import os
import sys
import tempfile
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

OPENCV_TO_BLENDER = Matrix.Diagonal((1, -1, -1, 1))
# Game engines discard texels below about one half; a blended edge would be neither surface nor hole.
ALPHA_TEST = 0.5
IMPORTERS = {
    ".glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    ".ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    ".stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
    ".fbx": lambda path: bpy.ops.import_scene.fbx(filepath=path),
}


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        tasks = json.load(file)["tasks"]
    for task in tasks:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        with tempfile.TemporaryDirectory() as textures:
            if task["scene"].endswith(".npz"):
                load_parts(task["scene"], textures)
            else:
                import_file(task["scene"])
            place(task["matrix"])
            write_surface(os.path.join(task["folder"], "surface.npz"))
            for mesh in {o.data for o in mesh_objects()}:
                shade(mesh, task["shading"])
            configure(task)
            render(task)


def mesh_objects() -> list[Any]:
    return [o for o in bpy.context.scene.objects if o.type == "MESH"]


def load_parts(path: str, textures: str) -> None:
    """Makes one mesh object a part of the npz."""
    with np.load(path) as arrays:
        for j, entry in enumerate(json.loads(bytes(arrays["parts_json"]))):
            mesh = bpy.data.meshes.new(f"part{j}")
            faces = arrays[f"{j}.faces"]
            mesh.from_pydata(arrays[f"{j}.vertices"].tolist(), [], faces.tolist())
            image = None
            if f"{j}.texture" in arrays:
                mesh.uv_layers.new().data.foreach_set("uv", loop_uv(mesh, arrays[f"{j}.uv"]).ravel())
                file = os.path.join(textures, f"{j}.webp")
                with open(file, "wb") as out:
                    out.write(bytes(arrays[f"{j}.texture"]))
                image = bpy.data.images.load(file)
            mesh.materials.append(part_material(f"part{j}", image, entry))
            bpy.context.scene.collection.objects.link(bpy.data.objects.new(f"part{j}", mesh))


def loop_uv(mesh: Any, uv: Any) -> Any:
    """(L, 2) float32: the uv of each face corner, in Blender's order of corners."""
    corners = np.empty(len(mesh.loops), dtype=np.int32)
    mesh.loops.foreach_get("vertex_index", corners)
    return np.ascontiguousarray(uv[corners], dtype=np.float32)


def part_material(name: str, image: Any, entry: dict[str, Any]) -> Any:
    """A Principled material, as an importer would leave it; `shade` turns it into emission."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    principled = nodes["Principled BSDF"]
    principled.inputs["Base Color"].default_value = (*(linear(c) for c in entry["color"]), 1)
    if image is not None:
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = image
        links.new(texture.outputs["Color"], principled.inputs["Base Color"])
        if entry["alpha"]:
            image.alpha_mode = "CHANNEL_PACKED"
            tested = nodes.new("ShaderNodeMath")
            tested.operation = "GREATER_THAN"
            tested.inputs[1].default_value = ALPHA_TEST
            links.new(texture.outputs["Alpha"], tested.inputs[0])
            links.new(tested.outputs[0], principled.inputs["Alpha"])
        else:
            image.alpha_mode = "NONE"
    return material


def linear(value: float) -> float:
    """sRGB to linear light."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def import_file(path: str) -> None:
    suffix = os.path.splitext(path)[1].lower()
    IMPORTERS[suffix](path)
    for unwanted in [o for o in bpy.context.scene.objects if o.type in {"CAMERA", "LIGHT"}]:
        bpy.data.objects.remove(unwanted)
    if not mesh_objects():
        raise SystemExit(f"{path} holds no mesh")


def place(matrix: list[list[float]] | None) -> None:
    """Moves everything by `matrix`, or into the unit box."""
    bpy.context.view_layer.update()
    if matrix is None:
        points = np.concatenate([world_vertices(o) for o in mesh_objects()])
        low, high = points.min(axis=0), points.max(axis=0)
        moved = Matrix.Scale(1 / float((high - low).max()), 4) @ Matrix.Translation((-(low + high) / 2).tolist())
    else:
        moved = Matrix(matrix)
    for root in [o for o in bpy.context.scene.objects if o.parent is None]:
        root.matrix_world = moved @ root.matrix_world
    bpy.context.view_layer.update()


def world_vertices(obj: Any) -> Any:
    vertices = np.empty(3 * len(obj.data.vertices), dtype=np.float32)
    obj.data.vertices.foreach_get("co", vertices)
    matrix = np.array(obj.matrix_world)
    return vertices.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]


def write_surface(path: str) -> None:
    vertices, faces, count = [], [], 0
    for obj in mesh_objects():
        mesh = obj.data
        mesh.calc_loop_triangles()
        triangles = np.empty(3 * len(mesh.loop_triangles), dtype=np.int32)
        mesh.loop_triangles.foreach_get("vertices", triangles)
        vertices.append(world_vertices(obj))
        faces.append(triangles.reshape(-1, 3) + count)
        count += len(mesh.vertices)
    np.savez(path, vertices=np.concatenate(vertices).astype(np.float32), faces=np.concatenate(faces).astype(np.int32))


def shade(mesh: Any, shading: str) -> None:
    """Replaces each material by one that emits its base colour, or the normal."""
    if not mesh.materials:
        mesh.materials.append(part_material("plain", None, {"color": (0.8, 0.8, 0.8)}))
    for slot, material in enumerate(mesh.materials):
        if material is None:
            mesh.materials[slot] = material = part_material("plain", None, {"color": (0.8, 0.8, 0.8)})
        if material.get("im3d_shaded"):
            continue
        material["im3d_shaded"] = True
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        principled = next((n for n in nodes if n.type == "BSDF_PRINCIPLED"), None)
        emission = nodes.new("ShaderNodeEmission")
        if shading == "normals":
            links.new(normal_colour(nodes, links), emission.inputs["Color"])
        elif principled is not None:
            follow(links, principled.inputs["Base Color"], emission.inputs["Color"])
        surface = emission.outputs[0]
        if principled is not None and (
            principled.inputs["Alpha"].links or principled.inputs["Alpha"].default_value < 1
        ):
            mix = nodes.new("ShaderNodeMixShader")
            follow(links, principled.inputs["Alpha"], mix.inputs["Fac"])
            links.new(nodes.new("ShaderNodeBsdfTransparent").outputs[0], mix.inputs[1])
            links.new(surface, mix.inputs[2])
            surface = mix.outputs[0]
        output = next((n for n in nodes if n.type == "OUTPUT_MATERIAL"), None) or nodes.new("ShaderNodeOutputMaterial")
        links.new(surface, output.inputs["Surface"])


def follow(links: Any, source: Any, target: Any) -> None:
    """Gives `target` what `source` has: its link or its value."""
    if source.links:
        links.new(source.links[0].from_socket, target)
    else:
        target.default_value = source.default_value


def normal_colour(nodes: Any, links: Any) -> Any:
    """Socket with n/2 + 1/2, linear light such that the picture holds about that value."""
    scale = nodes.new("ShaderNodeVectorMath")
    scale.operation = "MULTIPLY_ADD"
    scale.inputs[1].default_value = scale.inputs[2].default_value = (0.5, 0.5, 0.5)
    gamma = nodes.new("ShaderNodeGamma")
    gamma.inputs["Gamma"].default_value = 2.2
    links.new(nodes.new("ShaderNodeNewGeometry").outputs["Normal"], scale.inputs[0])
    links.new(scale.outputs[0], gamma.inputs["Color"])
    return gamma.outputs[0]


def configure(task: dict[str, Any]) -> None:
    """Cycles without light, a transparent film and a display transform that is the plain sRGB curve."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.samples = task["samples"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = False
    cycles.max_bounces = 0
    # Foliage stacks many alpha-tested layers; each is a transparent bounce.
    cycles.transparent_max_bounces = 64
    cycles.seed = 0
    scene.render.film_transparent = True
    scene.render.use_persistent_data = True
    scene.render.dither_intensity = 0
    scene.render.resolution_x = scene.render.resolution_y = task["size"]
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.image_settings.color_depth = "8"
    scene.render.image_settings.compression = 30
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.view_settings.exposure, scene.view_settings.gamma = 0, 1
    if threads := os.environ.get("OMP_NUM_THREADS"):
        scene.render.threads_mode, scene.render.threads = "FIXED", int(threads)
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.sensor_fit = "VERTICAL"
    camera.data.angle = math.radians(task["fov_deg"])
    camera.data.clip_start, camera.data.clip_end = 1e-3, 1e4
    scene.collection.objects.link(camera)
    scene.camera = camera


def render(task: dict[str, Any]) -> None:
    scene = bpy.context.scene
    for k, matrix in enumerate(task["cameras"]):
        scene.camera.matrix_world = Matrix(matrix) @ OPENCV_TO_BLENDER
        scene.render.filepath = os.path.join(task["folder"], f"view_{k:03d}.png")
        bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(sys.argv[-1])
