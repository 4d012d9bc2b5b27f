r"""Draws the sidebar tab in a real Blender window and saves pictures of it: panel_idle, _running, _error, _history.

    xvfb-run -s "-screen 0 1280x1000x24" blender --factory-startup --enable-event-simulate \
        --window-geometry 0 0 1280 1000 --python tools/screenshot_panel.py -- JOBS OUT

JOBS is a folder of finished jobs, with their views; the newest one is imported, so that the window shows it. OUT
receives the pictures. The queue is played: its jobs stand still in the state that is photographed. Works with Blender
3.4 too, which knows no extensions: the repository is loaded as a plain package.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bpy
import numpy as np

if "bool" not in vars(np):
    # The glTF importer of Debian's Blender 3.4 is older than Debian's numpy.
    np.bool = bool

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "im3d"
SETTLE_S = 2.0  # until thumbnails are loaded and drawn
SHOWN_FOLDER = "/home/artist/props"


class StillQueue:
    """A queue whose jobs do not move."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs
        self.backend = SimpleNamespace(hello=None)

    def tick(self) -> list[Any]:
        return []

    def close(self) -> None:
        """There is nothing to end."""


def part(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.im3d_blender.{name}")


def main(jobs: str, out: str) -> None:
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    bpy.context.preferences.addons.new().module = PACKAGE
    package.register()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    bpy.context.preferences.view.show_splash = False
    part("properties").refresh_jobs(bpy.context)
    session = part("session")
    bpy.app.timers.unregister(session._tick)  # nothing moves on a photograph
    Path(out).mkdir(parents=True, exist_ok=True)
    steps = iter([prepare, choose_tab, *shots(Path(out).absolute()), bpy.ops.wm.quit_blender])

    def next_step() -> float:
        next(steps)()
        return SETTLE_S

    bpy.app.timers.register(next_step, first_interval=1.0)


def prepare() -> None:
    """An object in view, the sidebar open."""
    window, area = view()
    region = next(r for r in area.regions if r.type == "WINDOW")
    space = area.spaces[0]
    space.show_region_ui = True
    space.shading.color_type = "TEXTURE"
    with bpy.context.temp_override(window=window, area=area, region=region):
        for obj in list(bpy.data.objects):
            bpy.data.objects.remove(obj)
        session = bpy.context.window_manager.im3d
        bpy.ops.im3d.import_job(filepath=session.jobs[session.index].folder)
        bpy.ops.view3d.view_axis(type="FRONT")
        bpy.ops.view3d.view_orbit(angle=0.5, type="ORBITRIGHT")
        bpy.ops.view3d.view_orbit(angle=0.35, type="ORBITUP")
        bpy.ops.view3d.view_selected()


def view() -> tuple[bpy.types.Window, bpy.types.Area]:
    window = bpy.context.window_manager.windows[0]
    return window, next(a for a in window.screen.areas if a.type == "VIEW_3D")


def choose_tab() -> None:
    """Clicks the fourth tab of the sidebar, ours: before 4.2 no script can choose the tab that is shown."""
    window, area = view()
    sidebar = next(r for r in area.regions if r.type == "UI")
    x, y = sidebar.x + sidebar.width - 12, sidebar.y + sidebar.height - 160
    for event, value in (("MOUSEMOVE", "NOTHING"), ("LEFTMOUSE", "PRESS"), ("LEFTMOUSE", "RELEASE")):
        window.event_simulate(type=event, value=value, x=x, y=y)


def shots(out: Path) -> list[Any]:
    """Each state of the panel: what sets it up, then the picture."""
    steps: list[Any] = []
    for name, state in (("idle", idle), ("running", running), ("error", error), ("history", history)):
        steps += [lambda state=state: settle(state), lambda name=name: shoot(out / f"panel_{name}.png")]
    return steps


def settle(state: Any) -> None:
    part("backend_state").state.installed = SimpleNamespace(version="0.1.0", accelerator="CUDA 12.8")
    part("session").use(StillQueue(state(bpy.context.scene.im3d)))
    known = part("session").current()
    for job in known.queue.jobs:
        known.note(job)
    percent = [100 * job.fraction for job in known.queue.jobs if job.state == "running"]
    bpy.context.window_manager.im3d.percent = percent[0] if percent else 0.0
    part("session").redraw(bpy.context)


def job(name: str, **state: Any) -> Any:
    request = {"name": name, "prompt": name, "preset": "standard", "seed": 1, "generator": "auto"}
    return part("link.queue").QueuedJob(id=name, folder=Path(SHOWN_FOLDER) / name, request=request, **state)


def idle(settings: Any) -> list[Any]:
    settings.source, settings.prompt = "PROMPT", "a wooden treasure chest with iron bands"
    settings.seed, settings.lock_seed, settings.show_details = 4711, True, True
    return []


def running(settings: Any) -> list[Any]:
    settings.show_details = False
    made = Path(bpy.context.window_manager.im3d.jobs[-1].folder)
    return [
        job(bpy.context.window_manager.im3d.jobs[-1].title, state="running", stage="fit", step=740, steps=1200,
            fraction=0.58, eta_s=41.0, preview=made / "preview.png", frames=sorted((made / "views").glob("*.png"))),
        job("barrel", state="waiting"),
        job("market stall", state="waiting"),
    ]  # fmt: skip


def error(settings: Any) -> list[Any]:
    settings.source, settings.show_details = "PROMPT", False
    failure = part("link.backend").Failure(
        "out_of_memory", "The GPU's memory does not hold this job.", "Use --preset draft, or close other programs.", ""
    )
    return [job("treasure chest", state="failed", stage="orbit", failure=failure)]


def history(settings: Any) -> list[Any]:
    settings.show_details = False
    return []


def shoot(path: Path) -> None:
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.screen.screenshot(filepath=str(path))


if __name__ == "__main__":
    main(*sys.argv[sys.argv.index("--") + 1 :])
