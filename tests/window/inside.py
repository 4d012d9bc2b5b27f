"""Runs inside Blender: walks through all states in all looks, then does real work. PLAN names a file of what to do.

Everything happens in steps of one timer, so that Blender's own loop draws and hears events between them. What was
found goes into report.json; an exception ends the run and is printed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import addon_utils
import bpy
import numpy as np
from pixels import Box, changed, cut, marked, write_png
from screen import Screen
from stage import PACKAGE, Stage, part, region, show_only_viewport, sidebar, view, write_json

PLAN = json.loads(Path(os.environ["PLAN"]).read_text(encoding="utf-8"))
OUT = Path(os.environ["PLAN"]).parent
THEMES = {"dark": "Blender_Dark.xml", "light": "Blender_Light.xml"}


@dataclass(frozen=True)
class Look:
    """How Blender looks: the language's name, the scale of the interface, the theme."""

    language: str
    scale: int
    theme: str

    @property
    def name(self) -> str:
        return f"{self.language.split('_')[0]}_{self.scale}x_{self.theme}"


# The first two have both of everything; the others are drawn when they are asked for.
LOOKS = [
    Look("en_US", 1, "dark"),
    Look("de_DE", 2, "light"),
    *(Look(language, 1, "dark") for language in ("de_DE", "es", "fr_FR", "ja_JP", "zh_HANS")),
]


class ControlPanel(bpy.types.Panel):
    """A label that fits above one that is far too long: a check that finds neither, or both, would be worth nothing."""

    bl_label = "Control"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "IM-3D"
    bl_order = -1
    shown = False

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return cls.shown

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.label(text="Short", translate=False)
        self.layout.label(text="A label with more words than any sidebar is wide, at whatever scale", translate=False)


# It comes first and shows all panels: their order is that in which Blender has first seen them together.
CONTROL = SimpleNamespace(name="control", shows="SIDEBAR", arrange=lambda stage: stage.queue(stage.job("barrel")))


class Walk:
    """One Blender's pictures.

    Attributes:
        report: The states, and those with texts that are cut off.
    """

    def __init__(self, screen: Screen, stage: Stage, states: list[Any]) -> None:
        self.screen, self.stage, self.states = screen, stage, states
        self.looks = [look for look in LOOKS if look.name in PLAN["looks"]] if PLAN["looks"] else LOOKS[:2]
        names, looks = [s.name for s in states], [look.name for look in self.looks]
        self.report: dict[str, Any] = {"states": names, "looks": looks, "cut_off": []}

    def run(self) -> Iterator[None]:
        for look in self.looks:
            plain: dict[str, tuple[np.ndarray, Box]] = {}
            for font in ("plain", "marked"):
                yield from self._dress(look, font)
                for state in [CONTROL, *self.states]:
                    print(f"state {state.name}, {look.name}, {font}", file=sys.stderr, flush=True)
                    frame, box = yield from self._picture(state)
                    if font == "plain":
                        plain[state.name] = cut(frame, box), box
                        write_png(OUT / f"{state.name}.{look.name}.png", plain[state.name][0])
                    else:
                        self._compare(state.name, look, *plain[state.name], frame)
                write_json(OUT / "report.json", self.report)

    def _compare(self, name: str, look: Look, before: np.ndarray, box: Box, frame: np.ndarray) -> None:
        picture, count = marked(before, cut(frame, box), look.scale)
        if name == CONTROL.name:
            if count != 1:
                raise RuntimeError(f"{count} of two labels are found to be cut off, not the long one")
        elif count:
            self.report["cut_off"].append(f"{name}.{look.name}")
            write_png(OUT / f"{name}.{look.name}.cut.png", picture)

    def _dress(self, look: Look, font: str) -> Iterator[None]:
        preferences = bpy.context.preferences
        preferences.view.language = look.language
        preferences.view.use_translate_interface = True
        preferences.view.ui_scale = look.scale
        folders = bpy.utils.preset_paths("interface_theme")
        preset = next(path for folder in folders if (path := Path(folder) / THEMES[look.theme]).exists())
        bpy.ops.script.execute_preset(filepath=str(preset), menu_idname="USERPREF_MT_interface_theme_presets")
        preferences.view.font_path_ui = PLAN["fonts"][font]
        self.stage.reset()
        yield from self.screen.settled()

    def _picture(self, state: Any) -> Iterator[None]:
        """A frame of the screen in this state, and where the state is in it."""
        stage, screen = self.stage, self.screen
        stage.reset()
        ControlPanel.shown = state is CONTROL
        window, area = view()
        area.spaces[0].show_region_ui = state.shows == "SIDEBAR"
        if state.shows == "SIDEBAR":
            state.arrange(stage)
            stage.load_pictures()
            yield from screen.settled()
            return screen.frame(), screen.box_of(window, sidebar())
        if state.shows == "PREFERENCES":
            bpy.ops.screen.userpref_show("INVOKE_DEFAULT")
            yield
            _show_our_preferences()
        _point(window)  # a popup opens there
        yield from screen.settled()
        before, inside = screen.frame(), region("WINDOW")
        with bpy.context.temp_override(window=window, area=area, region=inside):
            state.arrange(stage)
        yield from screen.settled(equal=5)
        frame = screen.frame()
        opened = bpy.context.window_manager.windows[-1]
        if state.shows == "POPUP":
            box = changed(before, frame, screen.box_of(window, inside, whole=True))
            if box is None:
                raise RuntimeError(f"{state.name}: nothing opened")
        else:
            box = screen.box_of(opened, region("TOOL_PROPS" if state.shows == "FILES" else "WINDOW", -1))
        if state.shows == "PREFERENCES":
            with bpy.context.temp_override(window=opened):
                bpy.ops.wm.window_close()
        else:
            _press(opened, "ESC")
        yield from screen.settled()
        return frame, box


def _show_our_preferences() -> None:
    bpy.context.preferences.active_section = "ADDONS"
    bpy.context.window_manager.addon_search = "IM-3D"
    module = next(m for m in addon_utils.modules() if m.__name__ == PACKAGE)
    addon_utils.module_bl_info(module)["show_expanded"] = True


def _point(window: bpy.types.Window) -> None:
    window.event_simulate(type="MOUSEMOVE", value="NOTHING", x=window.width // 3, y=window.height // 2)


def _press(window: bpy.types.Window, key: str) -> None:
    for value in ("PRESS", "RELEASE"):
        window.event_simulate(type=key, value=value, x=window.width // 2, y=window.height // 2)


def everything() -> Iterator[None]:
    bpy.context.preferences.system.viewport_aa = "OFF"
    bpy.context.preferences.view.show_tooltips = False
    # As "Install from Disk" does.
    bpy.ops.extensions.package_install_files(
        filepath=str(OUT / "im3d.zip"), repo="user_default", enable_on_install=True
    )
    yield from show_only_viewport()
    tick = part("state.timer").tick
    if bpy.app.timers.is_registered(tick):
        bpy.app.timers.unregister(tick)  # nothing moves on a photograph
    bpy.utils.register_class(ControlPanel)
    from states import STATES  # it needs the add-on

    stage = Stage(OUT / "examples", OUT / "jobs")
    wanted = PLAN["states"]  # none: all
    if PLAN["pictures"]:
        chosen = [state for state in STATES if not wanted or state.name in wanted]
        yield from Walk(Screen(OUT / "Xvfb_screen0"), stage, chosen).run()
    if PLAN["python"]:
        from work import work

        # Compiled code beside the sources, where earlier tests have left it.
        os.environ.update(IM3D_PYTHON=PLAN["python"], NUMBA_CACHE_DIR="")
        stage.reset()
        bpy.app.timers.register(tick, persistent=True)
        yield from work(OUT)


def start() -> None:
    steps = everything()

    def step() -> float | None:
        try:
            return next(steps) or 0.0
        except StopIteration:
            bpy.ops.wm.quit_blender()
            return None
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    bpy.app.timers.register(step, first_interval=0.5, persistent=True)


bpy.context.preferences.view.show_splash = False  # before it opens
start()
