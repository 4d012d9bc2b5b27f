"""Reduced copies of a finished object. Blender's own collapse keeps seams, so all levels share one texture."""

from __future__ import annotations

import bpy

RATIOS = (0.5, 0.25)


def add_levels(context: bpy.types.Context, obj: bpy.types.Object) -> list[bpy.types.Object]:
    """Adds a copy of `obj` for each of `RATIOS`, in the same collections and at the same place.

    The object itself is level 0 and keeps its name; the copies are named `…_LOD1` and `…_LOD2`.
    """
    levels = []
    for number, ratio in enumerate(RATIOS, start=1):
        level = obj.copy()
        level.data = _reduced(context, obj, ratio)
        level.name = level.data.name = f"{obj.name}_LOD{number}"
        for collection in obj.users_collection:
            collection.objects.link(level)
        levels.append(level)
    return levels


def _reduced(context: bpy.types.Context, obj: bpy.types.Object, ratio: float) -> bpy.types.Mesh:
    modifier = obj.modifiers.new("IM-3D level of detail", "DECIMATE")
    modifier.ratio = ratio
    modifier.delimit = {"UV"}
    try:
        graph = context.evaluated_depsgraph_get()
        return bpy.data.meshes.new_from_object(obj.evaluated_get(graph), depsgraph=graph)
    finally:
        obj.modifiers.remove(modifier)
