"""Camera, light and world for one object; runs under Blender, imports nothing of im3d.

The light is even and has no colour of its own: the texture already holds the light of the pictures it was made from.
"""

import importlib.util
import math
import os
import sys

import bpy
from mathutils import Vector

# A little to the right of the front and above: the front and one side are seen, and the top of most props.
AZIMUTH, ELEVATION = math.radians(28), math.radians(20)
FOV = math.radians(24)
# Share of the picture that the object's bounding box fills.
FILL = 0.84
BACKDROP = (0.83, 0.83, 0.83, 1.0)
# Radiance of a white surface by the light from everywhere, and by the key light that it faces.
AMBIENT, KEY = 0.62, 0.48
KEY_DIRECTION = Vector((-0.55, -0.75, 1.0))
# Half the side of the preview's ground, in lengths of the object.
GROUND = 3.0


def load_importing(path):
    """The add-on's own importing.py, loaded by its path."""
    spec = importlib.util.spec_from_file_location("im3d_importing", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def empty_scene():
    """A new file without objects, in metres."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.unit_settings.system = "METRIC"
    scene.unit_settings.scale_length = 1.0
    # AgX, the default, greys the texture's colours out.
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    return scene


def set_up(obj, size):
    """Adds world, key light and a camera that frames the object in a square picture of `size` pixels."""
    scene = bpy.context.scene
    bpy.context.view_layer.update()
    corners = [obj.matrix_world @ Vector(c) for c in obj.bound_box]
    centre = sum(corners, Vector()) / 8
    radius = max((c - centre).length for c in corners)
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.resolution_percentage = 100
    scene.world = _world()
    _add_camera(scene, corners, centre, radius)
    _add_key_light(scene, centre, radius)


def _world():
    """Even light from everywhere, and a flat light backdrop where the camera looks past the object."""
    world = bpy.data.worlds.new("Studio")
    # Without effect and deprecated from 5.0 on, where every world has nodes.
    if bpy.app.version < (5, 0, 0):
        world.use_nodes = True
    tree = world.node_tree
    tree.nodes.clear()
    path = tree.nodes.new("ShaderNodeLightPath")
    light, backdrop = tree.nodes.new("ShaderNodeBackground"), tree.nodes.new("ShaderNodeBackground")
    light.inputs["Strength"].default_value = AMBIENT
    light.inputs["Color"].default_value = (1, 1, 1, 1)
    backdrop.inputs["Color"].default_value = BACKDROP
    mix, output = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeOutputWorld")
    tree.links.new(path.outputs["Is Camera Ray"], mix.inputs[0])
    tree.links.new(light.outputs[0], mix.inputs[1])
    tree.links.new(backdrop.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], output.inputs["Surface"])
    for column, node in enumerate((path, light, backdrop, mix, output)):
        node.location = (220 * (column - 4), -140 * (column in (1, 2)) * column)
    return world


def _add_camera(scene, corners, centre, radius):
    direction = Vector(
        (
            math.cos(ELEVATION) * math.sin(AZIMUTH),
            -math.cos(ELEVATION) * math.cos(AZIMUTH),
            math.sin(ELEVATION),
        )
    )
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.data.sensor_fit = "VERTICAL"
    camera.data.angle = FOV
    camera.rotation_euler = direction.to_track_quat("Z", "Y").to_euler()
    scene.collection.objects.link(camera)
    scene.camera = camera
    # The distance at which every corner of the box is inside the wanted share of the picture.
    turned = camera.rotation_euler.to_matrix().transposed()
    seen = [turned @ (c - centre) for c in corners]
    # Seen from an angle, the box's middle is not the middle of its outline.
    shift_x = (max(p.x for p in seen) + min(p.x for p in seen)) / 2
    shift_y = (max(p.y for p in seen) + min(p.y for p in seen)) / 2
    slope = math.tan(FOV / 2) * FILL
    distance = max(p.z + max(abs(p.x - shift_x), abs(p.y - shift_y)) / slope for p in seen)
    camera.location = centre + turned.transposed() @ Vector((shift_x, shift_y, distance))
    camera.data.clip_start, camera.data.clip_end = distance / 100, 100 * (distance + radius)


def _add_key_light(scene, centre, radius):
    """A large soft light from the upper left, its power such that its share of the light does not depend on size."""
    light = bpy.data.objects.new("Key light", bpy.data.lights.new("Key light", "AREA"))
    light.data.shape = "DISK"
    light.data.size = 3 * radius
    offset = KEY_DIRECTION.normalized() * (4 * radius)
    light.location = centre + offset
    light.rotation_euler = offset.to_track_quat("Z", "Y").to_euler()
    # A diffuse disk of power P gives E = P / (π · distance²) straight ahead; a white surface then has radiance E / π.
    light.data.energy = KEY * math.pi**2 * offset.length_squared
    scene.collection.objects.link(light)


def add_ground(obj):
    """Ground under the object that takes its shadow and fades into the backdrop.

    Cycles' shadow catcher would do the same at five times the time: it renders the scene twice.
    """
    reach = max(obj.dimensions)
    corners = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]
    mesh = bpy.data.meshes.new("Ground")
    mesh.from_pydata([(GROUND * reach * x, GROUND * reach * y, 0) for x, y, _ in corners], [], [(0, 1, 2, 3)])
    mesh.materials.append(_ground_material(GROUND * reach))
    ground = bpy.data.objects.new("Ground", mesh)
    bpy.context.scene.collection.objects.link(ground)


def _ground_material(reach):
    """Diffuse in the middle, emitting the backdrop's colour from `reach` on."""
    material = bpy.data.materials.new("Ground")
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    coordinates = tree.nodes.new("ShaderNodeTexCoord")
    distance = tree.nodes.new("ShaderNodeVectorMath")
    distance.operation = "LENGTH"
    fade = tree.nodes.new("ShaderNodeMapRange")
    fade.interpolation_type = "SMOOTHSTEP"
    fade.inputs["From Min"].default_value, fade.inputs["From Max"].default_value = 0.1 * reach, 0.9 * reach
    diffuse, backdrop = tree.nodes.new("ShaderNodeBsdfDiffuse"), tree.nodes.new("ShaderNodeEmission")
    # Lit by both lights, the unshadowed ground under the object has the backdrop's brightness.
    albedo = BACKDROP[0] / (AMBIENT + KEY * KEY_DIRECTION.normalized().z)
    diffuse.inputs["Color"].default_value = (albedo, albedo, albedo, 1)
    backdrop.inputs["Color"].default_value = BACKDROP
    mix, output = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeOutputMaterial")
    tree.links.new(coordinates.outputs["Object"], distance.inputs[0])
    tree.links.new(distance.outputs["Value"], fade.inputs["Value"])
    tree.links.new(fade.outputs["Result"], mix.inputs[0])
    tree.links.new(diffuse.outputs[0], mix.inputs[1])
    tree.links.new(backdrop.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], output.inputs["Surface"])
    return material


def use_cycles(scene, samples):
    """CPU Cycles with the quick denoiser; the threads that the caller allows through OMP_NUM_THREADS."""
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.samples = samples
    cycles.use_adaptive_sampling = True
    cycles.max_bounces = 3
    cycles.use_denoising = True
    cycles.denoising_prefilter = "NONE"
    if hasattr(cycles, "denoising_quality"):
        cycles.denoising_quality = "FAST"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        scene.render.threads_mode, scene.render.threads = "FIXED", int(threads)
