"""Pictures and turntable videos dropped onto the viewport, or chosen from its Add menu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
from bpy_extras import view3d_utils
from mathutils import Vector
from mathutils.geometry import intersect_line_plane

from ...backend.im3d.shared.names import PICTURE_SUFFIXES
from ..core.job_request import VIDEOS

# So many pictures at once may be the views of one object: a folder of them cannot be dropped.
MANY = 4


class IM3D_OT_drop_pictures(bpy.types.Operator):
    """Make an object from each picture or turntable video, with the panel's settings"""

    bl_idname = "im3d.drop_pictures"
    # The entry of the menu that a drop opens.
    bl_label = "Generate 3D Object"
    bl_options = {"INTERNAL"}

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})
    directory: bpy.props.StringProperty(subtype="DIR_PATH", options={"SKIP_SAVE"})
    files: bpy.props.CollectionProperty(type=bpy.types.OperatorFileListElement, options={"SKIP_SAVE"})
    filter_glob: bpy.props.StringProperty(
        default=";".join(f"*{suffix}" for suffix in sorted(PICTURE_SUFFIXES | VIDEOS)), options={"HIDDEN", "SKIP_SAVE"}
    )
    location: bpy.props.FloatVectorProperty(subtype="TRANSLATION", options={"HIDDEN", "SKIP_SAVE"})
    one_object: bpy.props.BoolProperty(
        name="Views of One Object",
        description="The folder of these pictures shows one object from all around; otherwise each becomes an object",
        options={"HIDDEN", "SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Finds the place under the pointer; asks for files where none are given, and what many pictures show."""
        if not self._paths():
            context.window_manager.fileselect_add(self)
            return {"RUNNING_MODAL"}
        if context.region is not None and context.region.type == "WINDOW":
            self.location = point_below(context, event.mouse_region_x, event.mouse_region_y)
        if len(self._paths()) >= MANY:
            return context.window_manager.invoke_props_dialog(self)
        return self.execute(context)

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.prop(self, "one_object")

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Shows the last file in the panel and starts a job for each."""
        paths = self._paths()
        if self.one_object:
            paths = [paths[0].parent]
        place: dict[str, Any] = {}
        if self.properties.is_property_set("location"):
            # The first one stands exactly where it was dropped, the others beside it.
            place = {"location": self.location, "step_aside": False}
        for path in paths:
            try:
                _start(context, path, place)
            except RuntimeError as error:
                self.report({"ERROR"}, str(error).strip())
                return {"CANCELLED"}
            place.pop("step_aside", None)
        return {"FINISHED"}

    def _paths(self) -> list[Path]:
        chosen = [Path(self.directory) / file.name for file in self.files if file.name]
        return chosen or ([Path(self.filepath)] if self.filepath else [])


def _start(context: bpy.types.Context, path: Path, place: dict[str, Any]) -> None:
    settings = context.scene.im3d
    if path.is_dir() or _is_moving(path):
        settings.source, settings.views = "VIEWS", str(path)
        source = {"views": str(path)}
    else:
        settings.source, settings.image = "IMAGE", bpy.data.images.load(str(path), check_existing=True)
        source = {"image": str(path)}
    bpy.ops.im3d.generate("INVOKE_DEFAULT", **source, **place)


def _is_moving(path: Path) -> bool:
    """Whether a file is a video: a GIF is one when it has several frames."""
    if path.suffix.lower() in VIDEOS:
        return True
    # The block that begins each frame with its duration; a still picture has one at most.
    return path.suffix.lower() == ".gif" and path.read_bytes().count(b"\x00\x21\xf9\x04") > 1


def point_below(context: bpy.types.Context, x: int, y: int) -> Vector:
    """The point of the scene under a pixel of the viewport; where there is none, the ground's; else the 3D cursor."""
    region, view = context.region, context.space_data.region_3d
    origin = view3d_utils.region_2d_to_origin_3d(region, view, (x, y))
    direction = view3d_utils.region_2d_to_vector_3d(region, view, (x, y))
    hit, point, *_ = context.scene.ray_cast(context.evaluated_depsgraph_get(), origin, direction)
    if hit:
        return point
    ground = intersect_line_plane(origin, origin + direction, Vector(), Vector((0, 0, 1)))
    is_seen = ground is not None and 0 < (ground - origin).dot(direction) < context.space_data.clip_end
    return ground if is_seen else context.scene.cursor.location.copy()


class IM3D_FH_pictures(bpy.types.FileHandler):
    bl_idname = "IM3D_FH_pictures"
    bl_label = IM3D_OT_drop_pictures.bl_label
    bl_import_operator = IM3D_OT_drop_pictures.bl_idname
    bl_file_extensions = ";".join(sorted(PICTURE_SUFFIXES | VIDEOS))

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"


def _draw_add_menu(menu: bpy.types.Menu, context: bpy.types.Context) -> None:
    menu.layout.operator_context = "INVOKE_DEFAULT"
    menu.layout.separator()
    menu.layout.operator(IM3D_OT_drop_pictures.bl_idname, text="3D Object from Picture", icon="IMAGE_DATA")


def attach() -> None:
    bpy.types.VIEW3D_MT_mesh_add.append(_draw_add_menu)


def detach() -> None:
    bpy.types.VIEW3D_MT_mesh_add.remove(_draw_add_menu)


CLASSES = [IM3D_OT_drop_pictures, IM3D_FH_pictures]
