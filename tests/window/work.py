"""Real work in a real window: the add-on's operators, Blender's own timers, and the real backend. Runs inside Blender.

Each step asks for something as a user would and waits, in Blender's loop, for the queue and the scene to show it.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import bpy
from stage import PACKAGE, part, view

# As small as a job can be that still makes an object.
SMALL = ("fit.iterations=40 fit.size=64 fit.points=900 fit.max_gaussians=1200 mesh.grid=40 mesh.virtual_views=6 "
         "texture.size=128")  # fmt: skip
DEADLINE_S = 900.0  # of every wait; only a defect gets there


def work(folder: Path) -> Iterator[None]:
    """Everything, one after the other; raises AssertionError at the first thing that is not as it should be."""
    preferences = bpy.context.preferences.addons[PACKAGE].preferences
    preferences.jobs_folder = str(folder / "work")
    bpy.context.preferences.view.language = "en_US"  # Blender names what it makes in the interface's language
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    for step in (failure, queue_of_three, import_and_undo, asset, batch):
        print(f"state work: {step.__name__}", file=sys.stderr, flush=True)
        yield from step(folder)


def failure(folder: Path) -> Iterator[None]:
    """A model that is not there: the job fails with the remedy that the panel draws."""
    job = yield from ask(image=str(folder / "examples" / "cabinet.png"), name="nothing", generator="sv3d_p")
    yield from until(lambda: job.state == "failed", "the job fails")
    assert (job.failure.code, job.failure.remedy.split()[-1]) == ("model_missing", "sv3d_p"), job.failure
    assert objects() == [], objects()
    operate(bpy.ops.im3d.remove, job=job.id)
    assert current().find(job.id) is None


def queue_of_three(folder: Path) -> Iterator[None]:
    """Three jobs: the first arrives once nobody edits, the second is cancelled and resumed, the third arrives."""
    first = yield from ask(name="first", views=str(folder / "examples" / "yogurt_bottle"), height=0.5)
    second = yield from ask(name="second", views=str(folder / "examples" / "playhouse"), location=(2, 0, 0))
    third = yield from ask(name="third", views=str(folder / "examples" / "yogurt_bottle"), location=(4, 0, 0))
    yield from until(lambda: first.state == "running", "the first job runs")
    assert (second.state, third.state) == ("waiting", "waiting")

    operate(bpy.ops.mesh.primitive_cube_add)
    operate(bpy.ops.object.mode_set, mode="EDIT")
    yield from until(lambda: first.state == "done" and second.stage == "fit", "the second job fits splats")
    assert first.id in current().arriving
    assert objects() == ["Cube"], objects()
    operate(bpy.ops.object.mode_set, mode="OBJECT")
    yield from until(lambda: "first" in objects(), "the first object arrives")
    obj = bpy.data.objects["first"]
    assert abs(obj.dimensions.z - 0.5) < 1e-3, obj.dimensions
    assert (len(obj.data.materials), len(obj.data.uv_layers)) == (1, 1)

    operate(bpy.ops.im3d.cancel, job=second.id)
    yield from until(lambda: second.state in ("cancelled", "done"), "the second job ends")
    assert second.state == "cancelled", second.state
    yield from until(lambda: "third" in objects(), "the third object arrives")
    assert "second" not in objects()
    operate(bpy.ops.im3d.resume, job=second.id)
    yield from until(lambda: "second" in objects(), "the resumed object arrives")
    assert abs(bpy.data.objects["second"].location.x - 2.0) < 1e-4


def import_and_undo(folder: Path) -> Iterator[None]:
    """A finished job comes into the scene again; one undo takes it out, one redo brings it back."""
    row = next(row for row in bpy.context.window_manager.im3d.jobs if row.title == "third")
    # True: with an undo step, as after a click.
    operate(bpy.ops.im3d.import_job, "INVOKE_DEFAULT", True, filepath=row.folder, name="again")
    yield from until(lambda: "again" in objects(), "the object is imported")
    operate(bpy.ops.ed.undo)
    yield
    assert "again" not in objects(), objects()
    assert "third" in objects(), objects()
    operate(bpy.ops.ed.redo)
    yield
    assert "again" in objects(), objects()


def asset(folder: Path) -> Iterator[None]:
    """With levels of detail and splats into an asset library."""
    library = folder / "library"
    library.mkdir()
    operate(bpy.ops.preferences.asset_library_add, directory=str(library))
    name = bpy.context.preferences.filepaths.asset_libraries[-1].name
    row = next(row for row in bpy.context.window_manager.im3d.jobs if row.title == "first")
    operate(bpy.ops.im3d.import_job, filepath=row.folder, name="asset", library=name, lods=True, splats=True)
    yield
    obj = bpy.data.objects["asset"]
    assert obj.asset_data is not None
    assert {"asset_LOD1", "asset_LOD2"} <= set(objects()), objects()
    assert any(o.type != "MESH" or o.parent == obj for o in bpy.data.objects if o is not obj)
    assert list(library.glob("*.blend"))


def batch(folder: Path) -> Iterator[None]:
    """A table with a row that is done and one that is wrong; its results are beside it."""
    module, made = part("ops.batch"), part("core.job_request").make_request(prompt="x", settings=SMALL)
    read_table = module.read_table

    def read_small(*arguments: Any) -> Any:
        """Tables have no column for the settings that make these jobs small."""
        rows = read_table(*arguments)
        for row in rows:
            if row.request is not None:
                row.request["settings"] = made["settings"]
        return rows

    table = folder / "props.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["views", "name", "height"])
        rows.writerow([folder / "examples" / "yogurt_bottle", "bottle", "0.3"])
        rows.writerow([folder / "examples" / "yogurt_bottle", "tall", "very"])
    module.read_table = read_small
    operate(bpy.ops.im3d.batch, filepath=str(table), preset="draft")
    module.read_table = read_table
    results = table.with_suffix(".results.csv")
    yield from until(lambda: "bottle" in objects(), "the object of the first row arrives")
    assert results.read_text(encoding="utf-8").count("done") == 1
    assert results.read_text(encoding="utf-8").count("failed") == 1


# ---------------------------------------------------------------- helpers


def ask(**arguments: Any) -> Iterator[None]:
    """Asks for a job as a script does; returns it once it is in the queue."""
    operate(bpy.ops.im3d.generate, preset="draft", settings=SMALL, faces=600, **arguments)
    yield
    return current().queue.jobs[-1]


def operate(operator: Any, *how: Any, **arguments: Any) -> None:
    """Calls an operator from the viewport; its own error is raised."""
    window, area = view()
    region = next(r for r in area.regions if r.type == "WINDOW")
    with bpy.context.temp_override(window=window, area=area, region=region):
        ended = operator(*how, **arguments)
    assert "CANCELLED" not in ended, (operator, ended)


def current() -> Any:
    return part("state.session").current()


def objects() -> list[str]:
    return sorted(obj.name for obj in bpy.data.objects)


def until(condition: Callable[[], bool], what: str) -> Iterator[float]:
    """Lets Blender go on until the condition holds."""
    end = monotonic() + DEADLINE_S
    while not condition():
        if monotonic() > end:
            jobs = [(j.id, j.state, j.stage, j.failure) for j in current().queue.jobs]
            raise AssertionError(f"waited in vain until {what}: {jobs}, {objects()}")
        yield 0.1
