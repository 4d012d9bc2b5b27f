r"""Draws the sidebar tab in a real Blender window and saves a picture of it.

    xvfb-run -s "-screen 0 1280x800x24" blender --factory-startup --enable-event-simulate \
        --python tools/screenshot_panel.py -- JOBS PICTURE

JOBS is a folder of finished jobs; the newest one is imported first, so that the window shows it. Works with Blender 3.4
too, which knows no extensions: the repository is loaded as a plain package.
"""

import importlib.util
import sys
from pathlib import Path

import bpy
import numpy as np

if "bool" not in vars(np):
    # The glTF importer of Debian's Blender 3.4 is older than Debian's numpy.
    np.bool = bool

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "im3d"
SETTLE_S = 2.0  # until thumbnails are loaded and drawn


def main(jobs: str, picture: str) -> None:
    spec = importlib.util.spec_from_file_location(PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    bpy.context.preferences.addons.new().module = PACKAGE
    package.register()
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    bpy.context.preferences.view.show_splash = False
    bpy.ops.im3d.refresh_jobs()
    bpy.app.timers.register(lambda: prepare(picture), first_interval=1.0)


def prepare(picture: str) -> None:
    window = bpy.context.window_manager.windows[0]
    area = next(a for a in window.screen.areas if a.type == "VIEW_3D")
    region = next(r for r in area.regions if r.type == "WINDOW")
    space = area.spaces[0]
    space.show_region_ui = True
    space.shading.color_type = "TEXTURE"
    space.overlay.show_floor = True
    with bpy.context.temp_override(window=window, area=area, region=region):
        for obj in list(bpy.data.objects):
            bpy.data.objects.remove(obj)
        session = bpy.context.window_manager.im3d
        bpy.ops.im3d.import_job(filepath=session.jobs[session.index].folder)
        bpy.ops.view3d.view_axis(type="FRONT")
        bpy.ops.view3d.view_orbit(angle=0.5, type="ORBITRIGHT")
        bpy.ops.view3d.view_orbit(angle=0.35, type="ORBITUP")
        bpy.ops.view3d.view_selected()
    bpy.app.timers.register(lambda: choose_tab(picture, window, area), first_interval=SETTLE_S)


def choose_tab(picture: str, window: bpy.types.Window, area: bpy.types.Area) -> None:
    """Clicks the fourth tab of the sidebar, ours: before 4.2 no script can choose the tab that is shown."""
    sidebar = next(r for r in area.regions if r.type == "UI")
    x, y = sidebar.x + sidebar.width - 12, sidebar.y + sidebar.height - 160
    for event, value in (("MOUSEMOVE", "NOTHING"), ("LEFTMOUSE", "PRESS"), ("LEFTMOUSE", "RELEASE")):
        window.event_simulate(type=event, value=value, x=x, y=y)
    bpy.app.timers.register(lambda: shoot(picture), first_interval=SETTLE_S)


def shoot(picture: str) -> None:
    with bpy.context.temp_override(window=bpy.context.window_manager.windows[0]):
        bpy.ops.screen.screenshot(filepath=picture)
    bpy.ops.wm.quit_blender()


if __name__ == "__main__":
    main(*sys.argv[sys.argv.index("--") + 1 :])
