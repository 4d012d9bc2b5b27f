"""A finished mesh as one clean object of the scene.

This file imports nothing of the package, so that the command line can load it by its path and save a .blend with the
very same result (`backend/im3d/blender/save_blend.py`). It works with and without a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

# Blender's limit for names of data-blocks is 63 bytes; it cuts off the rest itself, in the middle of a character.
NAME_BYTES = 63
NORMAL_MAP = " normal"
FORBIDDEN = '<>:"/\\|?*'  # in names of files on Windows
# What the glTF importer can create. What is new in here and not part of the finished object is removed.
CREATED = ("objects", "meshes", "materials", "images", "collections", "node_groups", "armatures", "cameras", "lights")
# Asked for where the running Blender's importer knows the option (some came with 4.5).
IMPORT_OPTIONS = {
    # Seams are split in glTF; welded again, the mesh is as closed as the surface that was made.
    "merge_vertices": True,
    "import_pack_images": True,
    "import_select_created_objects": False,
    "import_scene_as_collection": False,
    "import_scene_extras": False,
    "import_unused_materials": False,
}


class ImportFailedError(Exception):
    """The mesh could not be imported; the scene is as it was. The text is a sentence for the user."""


def import_mesh(
    context: bpy.types.Context,
    path: Path,
    name: str,
    *,
    location: Sequence[float] = (0.0, 0.0, 0.0),
    height: float | None = None,
    collection: str = "",
    select: bool = True,
) -> bpy.types.Object:
    """Imports a GLB as one mesh object: origin at the centre of its base, no rotation, no scale, no parent.

    Pushes no undo step: an operator with the UNDO option makes one, other callers call `bpy.ops.ed.undo_push`.

    Args:
        context: Its scene and view layer receive the object; whatever mode it is in, it ends in object mode.
        path: GLB file; its lengths are metres.
        name: Name of the object, its mesh, its material and its images.
        location: Where the base's centre goes, in Blender units.
        height: Height in metres, whatever length the scene's unit has; None keeps the file's.
        collection: Name of the collection; when the scene has none of that name, the active one.
        select: Whether the new object becomes the selected and active one; otherwise the selection stays.

    Raises:
        ImportFailedError: No such file, no mesh in it, or Blender's importer refused it.
    """
    if not path.is_file():
        raise ImportFailedError(f"There is no file {path}.")
    _ensure_object_mode(context)
    target = _collection(context, collection)
    selected, active = list(context.selected_objects), context.view_layer.objects.active
    before = _snapshot()
    try:
        _run_importer(path)
        obj = _one_object(context, [o for o in bpy.data.objects if o not in before])
        _move_to(obj, target)
        _set_geometry(obj, height, context.scene.unit_settings.scale_length)
        obj.location = location
        _finish_materials(obj.data)
        _remove_all_new(before, keep=_parts(obj))
    except Exception as error:
        _remove_all_new(before, keep=set())
        _select(context, selected, active)
        if isinstance(error, ImportFailedError):
            raise
        raise ImportFailedError(f"{path.name} could not be imported: {str(error).strip()}") from error
    _rename(obj, name)
    context.view_layer.update()
    _select(context, *(([obj], obj) if select else (selected, active)))
    return obj


def _ensure_object_mode(context: bpy.types.Context) -> None:
    """Leaves edit, sculpt and paint modes: what is imported during them is lost when they end."""
    active = context.view_layer.objects.active
    if active is not None and active.mode != "OBJECT":
        with context.temp_override(active_object=active, object=active):
            bpy.ops.object.mode_set(mode="OBJECT")


def _collection(context: bpy.types.Context, name: str) -> bpy.types.Collection:
    """The scene's collection of that name, else the active one, else the scene's own."""
    scene = context.scene
    candidates = [c for c in (scene.collection, *scene.collection.children_recursive) if name and c.name == name]
    candidates.append(context.view_layer.active_layer_collection.collection)
    # A collection linked from a library cannot take new objects.
    return next((c for c in candidates if c.library is None), scene.collection)


def _snapshot() -> set[bpy.types.ID]:
    return {data for kind in CREATED for data in getattr(bpy.data, kind)}


def _run_importer(path: Path) -> None:
    operator = bpy.ops.import_scene.gltf
    try:
        known = operator.get_rna_type().properties
    except (AttributeError, KeyError):
        raise ImportFailedError("Blender's glTF 2.0 add-on is switched off; enable it in the preferences.") from None
    result = operator(filepath=str(path), **{k: v for k, v in IMPORT_OPTIONS.items() if k in known})
    if "FINISHED" not in result:
        raise ImportFailedError(f"{path.name} is not a mesh that Blender can read.")


def _one_object(context: bpy.types.Context, created: Iterable[bpy.types.Object]) -> bpy.types.Object:
    """One mesh object without parent or transform that holds the geometry of all that were created."""
    context.view_layer.update()
    meshes = [o for o in created if o.type == "MESH" and len(o.data.polygons)]
    if not meshes:
        raise ImportFailedError("The file holds no mesh.")
    worlds = [o.matrix_world.copy() for o in meshes]
    for obj, world in zip(meshes, worlds, strict=True):
        if obj.data.users > 1:
            obj.data = obj.data.copy()
        obj.data.transform(world)
        if world.is_negative:
            obj.data.flip_normals()
        obj.parent = None
        obj.animation_data_clear()
        obj.rotation_mode = "XYZ"
        obj.matrix_world = Matrix()
        obj.modifiers.clear()
    if len(meshes) > 1:
        with context.temp_override(
            active_object=meshes[0], object=meshes[0], selected_objects=meshes, selected_editable_objects=meshes
        ):
            bpy.ops.object.join()
    return meshes[0]


def _move_to(obj: bpy.types.Object, target: bpy.types.Collection) -> None:
    for collection in obj.users_collection:
        collection.objects.unlink(obj)
    target.objects.link(obj)


def _set_geometry(obj: bpy.types.Object, height: float | None, scale_length: float) -> None:
    """Puts the mesh's base centre at its origin and scales it to `height` metres.

    The importer has turned metres into Blender units already.
    """
    mesh = obj.data
    points = np.empty(3 * len(mesh.vertices), dtype=np.float32)
    mesh.vertices.foreach_get("co", points)
    low, high = points.reshape(-1, 3).min(axis=0), points.reshape(-1, 3).max(axis=0)
    base = Vector((float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2, float(low[2])))
    factor = 1.0
    if height is not None:
        if not high[2] > low[2]:
            raise ImportFailedError("The mesh is flat: it has no height that could be set.")
        factor = height / scale_length / float(high[2] - low[2])
    mesh.transform(Matrix.Scale(factor, 4) @ Matrix.Translation(-base))
    mesh.update()


def _finish_materials(mesh: bpy.types.Mesh) -> None:
    """Sets what a baked texture means: a matte, non-metallic surface. Packs the images."""
    for material in _materials(mesh):
        # The mesh is closed; seen from inside it should still be there.
        material.use_backface_culling = False
        for node in material.node_tree.nodes if material.node_tree else ():
            if node.type == "BSDF_PRINCIPLED":
                _set_unlinked(node, "Roughness", 1.0)
                _set_unlinked(node, "Metallic", 0.0)
            elif node.type == "NORMAL_MAP":
                for image in _images_into(node.inputs["Color"]):
                    image.colorspace_settings.name = "Non-Color"
        for image in _images(material):
            if image.packed_file is None:
                image.pack()


def _set_unlinked(node: bpy.types.Node, socket: str, value: float) -> None:
    if not node.inputs[socket].is_linked:
        node.inputs[socket].default_value = value


def _images_into(socket: bpy.types.NodeSocket) -> list[bpy.types.Image]:
    sources = [link.from_node for link in socket.links]
    return [node.image for node in sources if node.type == "TEX_IMAGE" and node.image is not None]


def _materials(mesh: bpy.types.Mesh) -> list[bpy.types.Material]:
    return [material for material in mesh.materials if material is not None]


def _images(material: bpy.types.Material) -> list[bpy.types.Image]:
    """The material's images, each once, the first the one of the base colour."""
    nodes = list(material.node_tree.nodes) if material.node_tree else []
    images = [i for n in nodes if n.type == "BSDF_PRINCIPLED" for i in _images_into(n.inputs["Base Color"])]
    images += [node.image for node in nodes if node.type == "TEX_IMAGE" and node.image is not None]
    return list(dict.fromkeys(images))


def _parts(obj: bpy.types.Object) -> set[bpy.types.ID]:
    """The object and every data-block it needs."""
    parts: set[bpy.types.ID] = {obj, obj.data}
    for material in _materials(obj.data):
        parts.update([material, *_images(material)])
        for node in material.node_tree.nodes if material.node_tree else ():
            if node.type == "GROUP" and node.node_tree is not None:
                parts.add(node.node_tree)
    return parts


def _remove_all_new(before: set[bpy.types.ID], keep: set[bpy.types.ID]) -> None:
    unwanted = [data for data in _snapshot() if data not in before and data not in keep]
    if unwanted:
        bpy.data.batch_remove(unwanted)


def _rename(obj: bpy.types.Object, name: str) -> None:
    """Gives object, mesh, materials and images the name; Blender adds .001 where it is taken."""
    name = " ".join(name.split()) or "IM-3D object"
    obj.name = obj.data.name = _shortened(name, "")
    for material in _materials(obj.data):
        material.name = _shortened(name, "")
        for image in _images(material):
            kind = NORMAL_MAP if image.colorspace_settings.name == "Non-Color" else ""
            suffix = f".{image.file_format.lower()}"
            # Exporters name textures by the image's name (USD) or path (FBX, OBJ), and leave out what has none.
            image.name = _shortened("".join("_" if c in FORBIDDEN else c for c in name), kind + suffix)
            image.filepath_raw = f"//textures/{image.name}"


def _shortened(name: str, end: str) -> str:
    """A data-block's name that ends so, cut off before that where it is too long."""
    return name.encode()[: NAME_BYTES - len(end)].decode(errors="ignore") + end


def _select(context: bpy.types.Context, objects: Iterable[bpy.types.Object], active: Any) -> None:
    """Selects exactly these objects, as far as the view layer shows them."""
    layer = context.view_layer
    for obj in layer.objects:
        if obj.select_get(view_layer=layer):
            obj.select_set(False, view_layer=layer)
    for obj in objects:
        # An object in a collection that is excluded from the view layer cannot be selected.
        if layer.objects.get(obj.name) == obj:
            obj.select_set(True, view_layer=layer)
    if active is None or layer.objects.get(active.name) == active:
        layer.objects.active = active
