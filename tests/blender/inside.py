"""Runs inside Blender: `inside.py FUNCTION REPORT ARGUMENTS…`. Each function returns what the test looks at."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import bpy

KINDS = ("objects", "meshes", "materials", "images", "collections")
PACKAGE = "bl_ext.user_default.im3d"


def install(extension: str) -> None:
    bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    result = bpy.ops.extensions.package_install_files(filepath=extension, repo="user_default", enable_on_install=True)
    assert result == {"FINISHED"}, result
    assert PACKAGE in sys.modules


def uninstall() -> None:
    repos = bpy.context.preferences.extensions.repos
    index = next(i for i, repo in enumerate(repos) if repo.module == "user_default")
    bpy.ops.extensions.package_uninstall(repo_index=index, pkg_id="im3d")


def registered() -> dict[str, bool]:
    return {
        "operator": hasattr(bpy.types, "IM3D_OT_import_job"),
        "panel": hasattr(bpy.types, "IM3D_PT_jobs"),
        "scene": hasattr(bpy.types.Scene, "im3d"),
    }


def empty_scene() -> None:
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=False)


def counts() -> dict[str, int]:
    return {kind: len(getattr(bpy.data, kind)) for kind in KINDS}


def names() -> list[str]:
    return sorted(o.name for o in bpy.data.objects)


def whole_life(extension: str, job: str) -> dict[str, Any]:
    before, variables = registered(), dict(os.environ)
    install(extension)
    installed, changed = registered(), {k for k, v in os.environ.items() if variables.get(k) != v}
    empty_scene()
    bpy.ops.ed.undo_push(message="before")
    imported = sorted(bpy.ops.im3d.import_job(filepath=job))
    objects = names()
    bpy.ops.ed.undo_push(message="import")  # operators called from a script push no step of their own
    undone, redone = undo_and_redo()
    uninstall()
    return {
        "before": before, "installed": installed, "imported": imported, "objects": objects, "undone": undone,
        "redone": redone, "after_uninstall": registered(), "variables": sorted(changed),
    }  # fmt: skip


def undo_and_redo() -> tuple[list[str], list[str]]:
    bpy.ops.ed.undo()
    undone = names()
    bpy.ops.ed.redo()
    return undone, names()


def clean_object(extension: str, job: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    props = bpy.data.collections.new("Props")
    bpy.context.scene.collection.children.link(props)
    before = counts()
    bpy.ops.im3d.import_job(filepath=job, location=(1.0, 2.0, 3.0), collection="Props")
    after = counts()
    (obj,) = bpy.data.objects
    vertices = [v.co for v in obj.data.vertices]
    (material,) = obj.data.materials
    (principled,) = [n for n in material.node_tree.nodes if n.type == "BSDF_PRINCIPLED"]
    edges: dict[tuple[int, int], int] = {}
    for polygon in obj.data.polygons:
        for key in polygon.edge_keys:
            edges[key] = edges.get(key, 0) + 1
    return {
        "new": {kind: after[kind] - before[kind] for kind in KINDS},
        "rotation": list(obj.rotation_euler),
        "scale": list(obj.scale),
        "parent": obj.parent and obj.parent.name,
        "location": list(obj.location),
        "low": [min(v[k] for v in vertices) for k in range(3)],
        "high": [max(v[k] for v in vertices) for k in range(3)],
        "collection": obj.users_collection[0].name,
        "selected": [o.name for o in bpy.context.selected_objects],
        "closed": all(count == 2 for count in edges.values()),
        "principled": {n: principled.inputs[n].default_value for n in ("Roughness", "Metallic")},
        "packed": [image.packed_file is not None for image in bpy.data.images],
        "color_spaces": [image.colorspace_settings.name for image in bpy.data.images],
    }


def height_in_units(extension: str, job: str, scale_length: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    bpy.context.scene.unit_settings.scale_length = float(scale_length)
    bpy.ops.im3d.import_job(filepath=job)
    return {"height": bpy.data.objects[0].dimensions.z}


def from_edit_mode(extension: str, job: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    bpy.ops.mesh.primitive_cube_add()
    bpy.ops.object.mode_set(mode="EDIT")
    for _ in range(2):
        bpy.ops.im3d.import_job(filepath=job, name="Second", select=False)
    return {
        "mode": bpy.context.mode,
        "selected": [o.name for o in bpy.context.selected_objects],
        "active": bpy.context.view_layer.objects.active.name,
        "objects": names(),
    }


def in_each_others_way(extension: str, job: str) -> dict[str, Any]:
    """Imports at the cursor where a cube, ground, a room or the one before stands."""
    install(extension)
    empty_scene()
    bpy.ops.mesh.primitive_plane_add(size=40)
    bpy.ops.mesh.primitive_cube_add(size=12, location=(0, 0, 5.9))
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.flip_normals()  # a room
    bpy.ops.object.mode_set(mode="OBJECT")
    for _ in range(3):
        bpy.ops.im3d.import_job(filepath=job, lods=True)
    in_room = [list(bpy.data.objects[name].location) for name in ("Kiste grün", "Kiste grün.001", "Kiste grün.002")]
    bpy.ops.mesh.primitive_cube_add(size=2, location=(0, 4, 0))  # as in Blender's own new file, the box is inside it
    bpy.ops.im3d.import_job(filepath=job, name="Beside", location=(0, 4, 0))
    bpy.ops.im3d.import_job(filepath=job, name="Inside", location=(0, 4, 0), step_aside=False)
    level = bpy.data.objects["Kiste grün_LOD1"]
    before = level.visible_get()
    level.hide_set(False)
    return {
        "in_room": in_room, "beside": list(bpy.data.objects["Beside"].location),
        "inside": list(bpy.data.objects["Inside"].location), "level": [before, level.visible_get(), level.hide_render],
    }  # fmt: skip


def exported(extension: str, job: str, out: str) -> dict[str, Any]:
    """The textures in what other programs get."""
    install(extension)
    empty_scene()
    name = "Vase 1/2: " + "ü" * 60
    bpy.ops.im3d.import_job(filepath=job, name=name)
    bpy.ops.preferences.addon_enable(module="io_scene_fbx")
    folder = Path(out)
    bpy.ops.export_scene.fbx(filepath=str(folder / "a.fbx"), path_mode="COPY", embed_textures=True)
    bpy.ops.wm.obj_export(filepath=str(folder / "a.obj"), path_mode="COPY")
    bpy.ops.wm.usd_export(filepath=str(folder / "a.usda"))
    return {"names": [image.name for image in bpy.data.images], "object": bpy.data.objects[0].name}


def without_denoiser(studio: str) -> dict[str, Any]:
    """The preview's settings in a Blender that was built without OpenImageDenoise, as Debian's 4.3 is."""
    import _cycles

    sys.path.insert(0, studio)
    use_cycles = __import__("studio").use_cycles
    said = []
    for built in (True, False):
        _cycles.with_openimagedenoise = built
        use_cycles(bpy.context.scene, 8)
        said.append([bpy.context.scene.cycles.use_denoising, bpy.context.scene.cycles.samples])
    return {"said": said}


def broken_job(extension: str, broken: str, nothing: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    before = counts()
    errors = []
    for folder in (broken, nothing):
        try:
            bpy.ops.im3d.import_job(filepath=folder)
        except RuntimeError as error:
            errors.append(str(error))
    return {"errors": errors, "left": {kind: counts()[kind] - before[kind] for kind in KINDS}}


def job_list(extension: str, jobs_folder: str) -> dict[str, Any]:
    install(extension)
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs_folder
    bpy.ops.im3d.refresh_jobs()
    session = bpy.context.window_manager.im3d
    return {"titles": [row.title for row in session.jobs], "height": session.jobs[0].height}


def look_into_blend(blend: str) -> dict[str, Any]:
    bpy.ops.wm.open_mainfile(filepath=blend)
    return {
        "meshes": [o.name for o in bpy.data.objects if o.type == "MESH"],
        "camera": bpy.context.scene.camera is not None,
        "packed": [i.packed_file is not None for i in bpy.data.images if i.type == "IMAGE"],
    }


def main(functions: dict[str, Any]) -> None:
    """Runs the function that the command line names and writes what it returns."""
    _, function, report, *arguments = sys.argv
    result = functions[function](*arguments)
    Path(report).write_text(json.dumps(result), encoding="utf-8")
    # bpy 4.2 crashes in its own clean-up after an undo; what the test looks at is on disk by now.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(globals())
