"""Runs inside Blender, as inside.py does: what the add-on does with jobs, on a backend that answers at once."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import bpy
from inside import PACKAGE, empty_scene, install, main, names, undo_and_redo


def module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.im3d_blender.{name}")


def placement_here(**placed: Any) -> Any:
    """A placement in the open file."""
    return module("core.placement").Placement(document=module("state.open_file").document(), **placed)


def refused(**arguments: Any) -> str:
    """What the user reads when an operator refuses; "" when it does not."""
    try:
        bpy.ops.im3d.generate(**arguments)
    except RuntimeError as error:
        return str(error)
    return ""


def generate_and_undo(extension: str, jobs: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.jobs_folder = jobs
    bpy.ops.ed.undo_push(message="before")
    ended = sorted(bpy.ops.im3d.generate(prompt="a green box", name="Kiste", height=0.5, location=(1, 2, 0)))
    (obj,) = bpy.data.objects
    facts = {"height": obj.dimensions.z, "location": list(obj.location)}
    objects = names()
    undone, redone = undo_and_redo()
    bpy.ops.im3d.refresh_jobs()
    listed = [row.title for row in bpy.context.window_manager.im3d.jobs]
    bpy.ops.im3d.import_job(filepath=bpy.context.window_manager.im3d.jobs[0].folder)
    bpy.ops.ed.undo_push(message="again")
    (request,) = (json.loads(p.read_text()) for p in Path(jobs).glob("*/request.json"))
    return {
        "ended": ended, "objects": objects, "undone": undone, "redone": redone, "listed": listed,
        "again": names(), "request": request, **facts,
    }  # fmt: skip


def bad_arguments(extension: str, jobs: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    said = [
        refused(),
        refused(image="/nonexistent.png"),
        refused(prompt="x", height=-1.0),
        refused(prompt="x", settings="nonsense"),
        refused(prompt="x", elevation=120.0),
        refused(views="/nonexistent"),
        refused(prompt="x", views="/tmp", image="/tmp"),
    ]
    failed = refused(prompt="x", name="fail")
    made = len(list(Path(jobs).glob("2*")))
    # A file stands where the folder of the jobs would be made.
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = str(Path(__file__) / "jobs")
    blocked = refused(prompt="x")
    return {"said": said, "failed": failed, "blocked": blocked, "jobs": made, "objects": names()}


def asset(extension: str, jobs: str, library: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    bpy.ops.preferences.asset_library_add(directory=library)
    name = bpy.context.preferences.filepaths.asset_libraries[-1].name
    bpy.ops.im3d.generate(prompt="a green box", name="Kiste", seed=11, library=name, lods=True)
    obj = bpy.data.objects["Kiste"]
    levels = {o.name: len(o.data.polygons) for o in bpy.data.objects if o.type == "MESH"}
    (blend,) = Path(library).glob("*.blend")
    with bpy.data.libraries.load(str(blend), assets_only=True) as (source, _):
        inside_library = list(source.objects)
    data = obj.asset_data
    return {
        "marked": data is not None,
        "description": data.description if data else "",
        "author": data.author if data else "",
        "licence": data.license if data else "",
        "seed": data.get("im3d_seed", "") if data else "",
        "tags": [tag.name for tag in data.tags] if data else [],
        "preview": list(obj.preview.image_size) if obj.preview else [],
        "in_library": inside_library,
        "levels": levels,
    }


def batch_of_five(extension: str, jobs: str, table: str) -> dict[str, Any]:
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    # A library of which nobody has made the folder yet, as Blender's own.
    library = Path(table).parent / "not made" / "library"
    bpy.ops.preferences.asset_library_add(directory=str(Path(table).parent))
    libraries = bpy.context.preferences.filepaths.asset_libraries
    libraries[-1].path = str(library)
    ended = sorted(bpy.ops.im3d.batch(filepath=table, library=libraries[-1].name))
    first = {
        "objects": names(), "collections": sorted(c.name for c in bpy.data.collections),
        "library": sorted(path.name for path in library.glob("*.blend")),
    }  # fmt: skip
    made = len(list(Path(jobs).glob("2*")))
    bpy.ops.im3d.batch(filepath=table)
    return {**first, "ended": ended, "made": made, "made_again": len(list(Path(jobs).glob("2*"))) - made}


def survives(extension: str, jobs: str) -> dict[str, Any]:
    """Another file is opened, and the add-on switched off, while a job runs."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    session = module("state.session")
    request = module("core.job_request").make_request(prompt="x", name="wait")
    placement = placement_here(scene=bpy.context.scene.name)
    job = session.submit(bpy.context, request, placement)
    known = session.current()
    ticks = 0
    while job.stage != "fit" and ticks < 2000:
        session.advance(bpy.context, known)
        ticks += 1
        session.time.sleep(0.005)
    running = job.state
    empty_scene()
    session.advance(bpy.context, session.current())
    kept = session.current().find(job.id) is not None
    other = session.submit(bpy.context, module("core.job_request").make_request(prompt="x", name="Kiste"), placement)
    session.current().queue.cancel(job.id)
    session.wait_for(bpy.context, [job.id, other.id])
    note = session.current().notes.get(other.id, "")
    backend = session.current().queue.backend
    module_name = f"{PACKAGE}"
    bpy.ops.preferences.addon_disable(module=module_name)
    return {
        "running": running, "kept": kept, "cancelled": job.state, "other": other.state, "note": note,
        "objects": names(), "backend": backend.state,
    }  # fmt: skip


def submit(name: str, **placed: Any) -> Any:
    """A job asked for in the open file, as the panel does, without waiting for it."""
    session = module("state.session")
    request = module("core.job_request").make_request(prompt="x", name=name)
    scene, blend = bpy.context.scene.name, bpy.data.filepath
    placement = placement_here(blend=blend, scene=scene, **placed)
    return session.submit(bpy.context, request, placement)


def saved_and_reopened(extension: str, jobs: str, blend: str) -> dict[str, Any]:
    """Jobs asked for in a file that had no path yet, which is saved, left, and opened again."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    session = module("state.session")
    first, second = submit("Kiste"), submit("Truhe")
    bpy.ops.wm.save_as_mainfile(filepath=blend)
    bpy.ops.wm.open_mainfile(filepath=blend)
    session.wait_for(bpy.context, [first.id])
    reopened = names()
    empty_scene()
    session.wait_for(bpy.context, [second.id])
    elsewhere, note = names(), session.current().notes.get(second.id, "")
    bpy.ops.wm.open_mainfile(filepath=blend)
    session.wait_for(bpy.context, [second.id])
    back = names()
    third = submit("Dose")
    empty_scene()
    session.wait_for(bpy.context, [third.id])
    waiting = names()
    bpy.ops.im3d.arrive(job=third.id)
    return {
        "reopened": reopened, "elsewhere": elsewhere, "note": note, "back": back, "waiting": waiting, "asked": names(),
    }  # fmt: skip


def warnings_and_clear(extension: str, jobs: str) -> dict[str, Any]:
    """What the backend warns of is with the job while it is in the list, and with the finished one."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    ui, session = module("ui.queue"), module("state.session")
    warned, failed, plain = submit("warn"), submit("fail"), submit("Kiste")
    session.wait_for(bpy.context, [warned.id, failed.id, plain.id])
    shown = [job.request["name"] for job in ui.shown_jobs(session.current())]
    listed = {row.title: row.warnings for row in bpy.context.window_manager.im3d.jobs}
    seeds = [job.request["seed"] for job in (warned, failed, plain)]
    bpy.ops.im3d.clear_ended()
    return {
        "shown": shown, "warnings": warned.warnings, "listed": listed, "left": len(session.current().queue.jobs),
        "folders": len(list(Path(jobs).glob("2*"))), "seeds": seeds,
    }  # fmt: skip


def folder_gone(extension: str, jobs: str) -> dict[str, Any]:
    """The folder of a failed job was deleted, and the user asks to go on with the job."""
    install(extension)
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    session = module("state.session")
    job = submit("fail")
    session.wait_for(bpy.context, [job.id])
    shutil.rmtree(job.folder)
    try:
        bpy.ops.im3d.resume(job=job.id)
        report = ""
    except RuntimeError as error:
        report = str(error)
    return {"report": report, "states": [j.state for j in session.current().queue.jobs]}


def preferences_changed(extension: str, jobs: str, table: str) -> dict[str, Any]:
    """A job has ended and its object has not arrived; a row of a table failed. Then preferences are changed."""
    install(extension)
    empty_scene()
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.jobs_folder = jobs
    session = module("state.session")
    bpy.ops.im3d.batch(filepath=table)
    job = submit("Kiste")
    empty_scene()
    session.wait_for(bpy.context, [job.id])
    empty_scene()  # it may arrive in this file, until somebody looks
    preferences.jobs_folder = str(Path(jobs) / "other")
    arriving, batches = list(session.current().arriving), len(session.current().batches)
    session.wait_for(bpy.context, [job.id])
    preferences.remote_host = "elsewhere"
    note = session.current().notes.get(job.id, "")
    bpy.ops.im3d.arrive(job=job.id)
    return {
        "arriving": arriving == [job.id], "batches": batches, "note": note, "objects": names(),
        "jobs": [j.state for j in session.current().queue.jobs],
    }  # fmt: skip


def left_unfinished(extension: str, jobs: str) -> dict[str, Any]:
    """Blender is closed before a job has begun; the next session takes it up, once."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    session = module("state.session")
    request = module("core.job_request").make_request(prompt="x", name="Kiste")
    placement = placement_here(scene=bpy.context.scene.name)
    folder = session.submit(bpy.context, request, placement).folder
    session.restart()
    known = session.ensure(bpy.context)
    known.left = known.queue.unfinished()
    left = [path.name for path in known.left]
    bpy.ops.im3d.resume_left()
    session.wait_for(bpy.context, [job.id for job in known.queue.jobs])
    return {
        "left": left, "asked": folder.name, "then": [str(p) for p in known.queue.unfinished()], "objects": names(),
        "jobs": len(known.queue.jobs),
    }  # fmt: skip


def installed_meanwhile(extension: str, jobs: str, home: str) -> dict[str, Any]:
    """The backend is installed while Blender runs; a job was left unfinished before."""
    os.environ.pop("IM3D_PYTHON", None)
    install(extension)
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.jobs_folder, preferences.home = jobs, home
    session, state = module("state.session"), module("state.backend_state").state
    placement = placement_here(scene=bpy.context.scene.name)
    session.submit(bpy.context, module("core.job_request").make_request(prompt="x", name="Kiste"), placement)
    session.restart()
    known = session.ensure(bpy.context)
    known.left = known.queue.unfinished()
    module("state.timer").tick()
    before = len(known.left)
    backend = Path(home, "backend")
    (backend / "bin").mkdir(parents=True)
    python = backend / "bin" / "python"
    python.touch()
    current = {"python": "backend/bin/python", "version": "0.1.0", "accelerator": "cpu", "key": "k"}
    (backend / "current.json").write_text(json.dumps(current), encoding="utf-8")
    state.installation = SimpleNamespace(poll=lambda: SimpleNamespace(done=True, error=""), cancel=lambda: None)
    module("state.timer").tick()
    got = {
        "before": before, "left": len(known.left), "jobs": [job.state for job in known.queue.jobs],
        "starts": known.queue.backend.command[0] == str(python),
    }  # fmt: skip
    session.restart()
    return got


def examples(extension: str, jobs: str, *blocks: str) -> dict[str, Any]:
    """The Python blocks of docs/guides/scripting.md, as they stand there."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    for block in blocks:
        exec(compile(block, "scripting.md", "exec"), {})
    return {"objects": names()}


def command_line(extension: str, jobs: str, out: str) -> dict[str, Any]:
    """`blender --command im3d …`, called as Blender calls it."""
    install(extension)
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    run = module("ops.command_line").run
    statuses = [run(arguments) for arguments in (["generate", "--preset", "best"], ["generate"])]
    statuses.append(run(["generate", "--prompt", "x", "--name", "fail", "--empty"]))
    options = ["--prompt", "a box", "--name", "Kiste", "--height", "0.5", "--lods", "--empty", "--out", out]
    statuses.append(run(["generate", *options]))
    bpy.ops.wm.open_mainfile(filepath=out)
    return {"statuses": statuses, "objects": names(), "height": bpy.data.objects["Kiste"].dimensions.z}


def dropped(extension: str, jobs: str, folder: str) -> dict[str, Any]:
    """What becomes of dropped files, in the order of their jobs."""
    install(extension)
    empty_scene()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    module("state.session").ensure(bpy.context)
    drop, add_menu = bpy.ops.im3d.drop_pictures, bpy.types.VIEW3D_MT_mesh_add
    names_ = ("a.png", "still.gif", "moving.gif", "turn.MP4")
    drop(directory=folder, files=[{"name": name} for name in names_], location=(2, 1, 0))
    drop(directory=folder, files=[{"name": "a.png"}, {"name": "b.png"}], one_object=True)
    asked = [job.request for job in module("state.session").current().queue.jobs]
    return {
        "asked": [[Path(r[k]).name if r[k] else None for k in ("image", "views")] for r in asked],
        "places": {o.name: list(o.location) for o in bpy.data.objects},
        "menu": any(f.__module__.startswith(PACKAGE) for f in add_menu.draw._draw_funcs),
    }  # fmt: skip


def drop_handler(extension: str) -> dict[str, Any]:
    install(extension)
    cls = getattr(bpy.types, "IM3D_FH_pictures", None)
    if cls is None:
        return {"there": False}
    return {"there": True, "label": cls.bl_label, "operator": cls.bl_import_operator, "files": cls.bl_file_extensions}


if __name__ == "__main__":
    main(globals())
