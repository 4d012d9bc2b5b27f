"""Camera, light and world for one object; runs under Blender, imports nothing of im3d.

The light is even and has no colour of its own: the texture already holds the light of the pictures it was made from.
"""

import importlib.util
import math
import os
import sys

import bpy
import numpy as np
from mathutils import Vector

OLDEST = (4, 2, 0)
# A little to the right of the front and above: the front and one side are seen, and the top of most props.
AZIMUTH, ELEVATION = math.radians(28), math.radians(20)
FOV = math.radians(24)
# Share of the picture's width or height that the object fills.
FILL = 0.84
BACKDROP = (0.83, 0.83, 0.83, 1.0)
# Radiance of a white surface by the light from everywhere, and by the key light that it faces.
AMBIENT, KEY = 0.62, 0.48
KEY_DIRECTION = Vector((-0.55, -0.75, 1.0))
# Samples without a denoiser, for each with one.
UNDENOISED = 4
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
    """A new file without objects, in metres.

    Raises:
        RuntimeError: This Blender is too old.
    """
    if bpy.app.version < OLDEST:
        raise RuntimeError(f"Blender {bpy.app.version_string} is too old, 4.2 or newer is needed")
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
    points = np.empty(3 * len(obj.data.vertices), dtype=np.float32)
    obj.data.vertices.foreach_get("co", points)
    points = points.reshape(-1, 3) + np.array(obj.location, dtype=np.float32)
    centre = Vector((points.min(axis=0) + points.max(axis=0)).tolist()) / 2
    radius = float(np.linalg.norm(points - np.array(centre), axis=1).max())
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.resolution_percentage = 100
    scene.world = _world()
    _add_camera(scene, points, centre, radius)
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


def _add_camera(scene, points, centre, radius):
    """A camera that has all the points, (V, 3), in the wanted share of its picture."""
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
    turned = np.array(camera.rotation_euler.to_matrix())
    seen = (points - np.array(centre)) @ turned
    slope = math.tan(FOV / 2) * FILL
    # The lines of sight that just touch the points on one side meet those of the other side at the camera.
    offset, distances = np.zeros(3), []
    for axis in (0, 1):
        high, low = (seen[:, axis] + slope * seen[:, 2]).max(), (slope * seen[:, 2] - seen[:, axis]).max()
        offset[axis] = (high - low) / 2
        distances.append((high + low) / (2 * slope))
    distance = max(distances)
    offset[2] = distance
    camera.location = centre + Vector((turned @ offset).tolist())
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
    """CPU Cycles with the quick denoiser; the threads that the caller allows through OMP_NUM_THREADS.

    A Blender that was built without the denoiser takes `UNDENOISED` times the samples.
    """
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.use_adaptive_sampling = True
    cycles.max_bounces = 3
    cycles.use_denoising = has_denoiser()
    cycles.samples = samples if cycles.use_denoising else UNDENOISED * samples
    if cycles.use_denoising:
        cycles.denoising_prefilter, cycles.denoising_quality = "NONE", "FAST"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        scene.render.threads_mode, scene.render.threads = "FIXED", int(threads)


def has_denoiser():
    """Whether this Blender was built with OpenImageDenoise; rendering fails when it was not and is asked to denoise."""
    import _cycles  # Blender's own, and only there

    return bool(getattr(_cycles, "with_openimagedenoise", True))
