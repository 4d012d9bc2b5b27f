"""A free place for a new object: beside what stands where it was to arrive."""

from __future__ import annotations

from collections.abc import Iterator

import bpy
from mathutils import Vector

# Kept clear beside a neighbour, in widths of the new object.
GAP = 0.1
# Boxes that overlap by less, in lengths of the new object, only touch.
TOUCHING = 1e-3
# What is so many times as large is ground or a room, in which an object may well stand; but not inside something solid.
SURROUNDINGS = 4.0
SOLID = {"MESH", "CURVE", "SURFACE", "META", "FONT"}

Box = tuple[Vector, Vector]


def step_aside(context: bpy.types.Context, obj: bpy.types.Object) -> None:
    """Moves a new object along +X, at its height, until its box is clear of the boxes of all others that are seen.

    Args:
        obj: In the view layer, without parent.
    """
    layer = context.view_layer
    layer.update()
    graph = context.evaluated_depsgraph_get()
    low, high = _box(obj)
    others = [(other, _box(other)) for other in layer.objects if other != obj and _is_solid(other, layer)]
    gap, moved = GAP * (high.x - low.x), 0.0
    while True:
        # Each round passes at least one of the others, so this ends.
        here = (low + Vector((moved, 0, 0)), high + Vector((moved, 0, 0)))
        ends = [box[1].x for other, box in others if _is_taken(here, other, box, graph)]
        if not ends:
            break
        moved = max(ends) + gap - low.x
    obj.location.x += moved


def _is_solid(obj: bpy.types.Object, layer: bpy.types.ViewLayer) -> bool:
    """Whether an object takes up space in the picture: not hidden, and more than the outline of a helper."""
    return obj.type in SOLID and obj.display_type not in ("BOUNDS", "WIRE") and obj.visible_get(view_layer=layer)


def _box(obj: bpy.types.Object) -> Box:
    """The lowest and the highest corner of an object's bounding box in the world."""
    corners = [obj.matrix_world @ Vector(corner) for corner in obj.bound_box]
    return Vector(map(min, *corners)), Vector(map(max, *corners))


def _is_taken(here: Box, other: bpy.types.Object, box: Box, graph: bpy.types.Depsgraph) -> bool:
    low, high = here
    touching = TOUCHING * max(high - low)
    if any(min(high[k], box[1][k]) - max(low[k], box[0][k]) <= touching for k in range(3)):
        return False
    if _width(box) <= SURROUNDINGS * _width(here):
        return True
    return any(_is_inside(point, other, graph) for point in _middles(here))


def _width(box: Box) -> float:
    return max(box[1].x - box[0].x, box[1].y - box[0].y)


def _middles(box: Box) -> Iterator[Vector]:
    """Points of the box's axis: a little above its base, in its middle, a little below its top."""
    low, high = box
    for height in (0.1, 0.5, 0.9):
        yield Vector(((low.x + high.x) / 2, (low.y + high.y) / 2, low.z + height * (high.z - low.z)))


def _is_inside(point: Vector, obj: bpy.types.Object, graph: bpy.types.Depsgraph) -> bool:
    """Whether a point is within an object's surface: the first faces above and below it are seen from behind."""
    to_local = obj.matrix_world.inverted_safe()
    for direction in (Vector((0, 0, 1)), Vector((0, 0, -1))):
        way = to_local.to_3x3() @ direction
        try:
            hit, _, normal, _ = obj.evaluated_get(graph).ray_cast(to_local @ point, way)
        except RuntimeError:  # it has no faces
            return False
        if not hit or normal.dot(way) <= 0:
            return False
    return True
