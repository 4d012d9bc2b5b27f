"""The splats of a job as coloured points. A real splat renderer does not exist in Blender; points with colour do.

The points are the vertices of a mesh, because data of that kind can be made in every supported Blender; a node group
draws them as spheres with their own radius and colour.
"""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

SH0 = 0.28209479177387814  # the constant spherical harmonic, by which 3DGS files divide colours
LEAST_OPACITY = 0.1  # fainter splats are haze, as points they would be a solid crust
NODES = "IM-3D points"
# Blender's glTF importer turns +Y up into +Z up.
BLENDER_FROM_GLB = Matrix(((1, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))


class SplatsError(Exception):
    """The file cannot be shown; the text is a sentence for the user."""


def read_splats(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (N, 3), colours (N, 4; sRGB, alpha is the opacity) and radii (N,) of a 3DGS PLY, all float32.

    Raises:
        SplatsError: Not a binary little-endian 3DGS file, or cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SplatsError(f"{path} cannot be read.") from error
    head, marker, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    names = [line[2] for line in lines if line[:2] == ["property", "float"]]
    counts = [int(line[2]) for line in lines if line[:2] == ["element", "vertex"]]
    wanted = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    if not marker or b"binary_little_endian" not in head or len(counts) != 1 or set(wanted) - set(names):
        raise SplatsError(f"{path.name} is not a file of Gaussian splats.")
    if len(body) < 4 * counts[0] * len(names):
        raise SplatsError(f"{path.name} ends too early.")
    table = np.frombuffer(body, "<f4", counts[0] * len(names)).reshape(counts[0], len(names))
    column = {name: table[:, names.index(name)] for name in wanted}
    opacity = 1 / (1 + np.exp(-column["opacity"]))
    color = np.stack([*(0.5 + SH0 * column[f"f_dc_{k}"] for k in range(3)), opacity], axis=1).clip(0, 1)
    radius = np.exp(np.stack([column[f"scale_{k}"] for k in range(3)], axis=1).mean(axis=1))
    keep = np.isfinite(table).all(axis=1) & (opacity >= LEAST_OPACITY)
    position = np.stack([column[axis] for axis in "xyz"], axis=1)
    return position[keep], color[keep].astype(np.float32), radius[keep]


def add_points(
    obj: bpy.types.Object, path: Path, orbit_from_glb: list[list[float]], height_m: float
) -> bpy.types.Object:
    """Adds the splats as points beside the object that was made from them: a child of it.

    Args:
        obj: The imported object.
        path: The splats' PLY.
        orbit_from_glb: See `FinishedJob.orbit_from_glb`.
        height_m: Height of the GLB in metres.

    Raises:
        SplatsError: The file cannot be shown.
    """
    if np.shape(orbit_from_glb) != (4, 4):
        raise SplatsError("The result does not say where its splats are.")
    position, color, radius = read_splats(path)
    scale = obj.dimensions.z / max(obj.scale.z, 1e-9) / height_m
    to_object = Matrix.Scale(scale, 4) @ BLENDER_FROM_GLB @ Matrix(orbit_from_glb).inverted()
    name = f"{obj.name} points"
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(position))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(position, np.float32).ravel())
    mesh.transform(to_object)
    mesh.attributes.new("Color", "BYTE_COLOR", "POINT").data.foreach_set("color_srgb", color.ravel())
    radius = radius * to_object.median_scale
    mesh.attributes.new("radius", "FLOAT", "POINT").data.foreach_set("value", radius.astype(np.float32))
    mesh.update()
    points = bpy.data.objects.new(name, mesh)
    for collection in obj.users_collection:
        collection.objects.link(points)
    points.parent = obj
    points.modifiers.new(NODES, "NODES").node_group = _node_group()
    return points


def _node_group() -> bpy.types.NodeTree:
    """Vertices → points with their radius and colour; made once a file."""
    known = bpy.data.node_groups.get(NODES)
    if known is not None:
        return known
    group = bpy.data.node_groups.new(NODES, "GeometryNodeTree")
    for direction in ("INPUT", "OUTPUT"):
        group.interface.new_socket("Geometry", in_out=direction, socket_type="NodeSocketGeometry")
    nodes, links = group.nodes, group.links
    start, end = nodes.new("NodeGroupInput"), nodes.new("NodeGroupOutput")
    radius = nodes.new("GeometryNodeInputNamedAttribute")
    radius.data_type = "FLOAT"
    radius.inputs["Name"].default_value = "radius"
    to_points = nodes.new("GeometryNodeMeshToPoints")
    material = nodes.new("GeometryNodeSetMaterial")
    material.inputs["Material"].default_value = _material()
    links.new(start.outputs["Geometry"], to_points.inputs["Mesh"])
    links.new(radius.outputs["Attribute"], to_points.inputs["Radius"])
    links.new(to_points.outputs[0], material.inputs["Geometry"])
    links.new(material.outputs["Geometry"], end.inputs["Geometry"])
    for x, node in enumerate((start, radius, to_points, material, end)):
        node.location = (200 * x, 0 if node is not radius else -150)
    return group


def _material() -> bpy.types.Material:
    """The points' own colour, without light: it is the views' light that they carry already."""
    material = bpy.data.materials.new(NODES)
    if not material.node_tree:
        material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    attribute, emission, output = (nodes.new(f"ShaderNode{n}") for n in ("Attribute", "Emission", "OutputMaterial"))
    attribute.attribute_name = "Color"
    links.new(attribute.outputs["Color"], emission.inputs["Color"])
    links.new(emission.outputs["Emission"], output.inputs["Surface"])
    for x, node in enumerate((attribute, emission, output)):
        node.location = (200 * x, 0)
    return material
