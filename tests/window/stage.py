"""What states of the panel are arranged with. Runs inside Blender."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import bpy

PACKAGE = "bl_ext.user_default.im3d"
SHOWN_FOLDER = Path("/home/artist/props")


def part(name: str) -> ModuleType:
    """A module of the add-on."""
    return importlib.import_module(f"{PACKAGE}.im3d_blender.{name}")


class StillQueue:
    """A queue whose jobs do not move."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs
        self.backend = SimpleNamespace(hello=None, state="stopped")

    def tick(self) -> list[Any]:
        return []

    def unfinished(self) -> list[Path]:
        return []

    def close(self) -> None:
        """There is nothing to end."""


class Stage:
    """The add-on in one window, its timer stopped. `reset` makes the state that every other one starts from: the
    backend and all its models installed, online access allowed, three finished jobs, nothing queued, inputs as in a
    new scene.

    Args:
        pictures: Folder of the repository's examples.
        jobs: Folder with the finished jobs.

    Attributes:
        panels: Names of the panels that are shown; empty: all.
    """

    panels: ClassVar[set[str]] = set()

    def __init__(self, pictures: Path, jobs: Path) -> None:
        self.pictures = pictures
        self.jobs_folder = jobs
        self.preferences = bpy.context.preferences.addons[PACKAGE].preferences
        self.backend = part("state.backend_state").state

    @property
    def settings(self) -> Any:
        """The inputs in the panel."""
        return bpy.context.scene.im3d

    @property
    def session(self) -> Any:
        """The finished jobs in the panel."""
        return bpy.context.window_manager.im3d

    def reset(self) -> None:
        Stage.panels = set()
        settings = self.settings
        for name in settings.bl_rna.properties.keys():  # noqa: SIM118
            if name not in ("rna_type", "name"):
                settings.property_unset(name)
        settings.name = ""
        for name in self.preferences.bl_rna.properties.keys():  # noqa: SIM118
            if name not in ("rna_type", "name", "bl_idname", "module"):
                self.preferences.property_unset(name)
        bpy.context.preferences.system.use_online_access = True
        self.preferences.jobs_folder = str(self.jobs_folder)
        part("state.properties").refresh_jobs(bpy.context)
        self.session.search = ""
        part("state.cutout").cancel()
        self.queue()
        state = self.backend
        state.__dict__.update(type(state)().__dict__)
        self.offer("cpu")  # before `refresh` asks for a graphics card on a thread of its own
        part("state.backend_state").refresh(bpy.context)
        state.installed = SimpleNamespace(version="0.1.0", accelerator="cu130", python=Path("python"), home=Path())
        state.models = [dataclasses.replace(model, installed=True) for model in state.models]

    def offer(self, accelerator: str) -> None:
        """What would be installed on a machine of that kind."""
        self.backend.offer = part("install").default_spec("0.1.0", accelerator=accelerator)

    def load_pictures(self) -> None:
        """Blender reads a picture when it first draws it, some time later; asked for its size, at once."""
        previews = part("state.thumbnails")._previews or {}
        for preview in previews.values():
            _ = preview.icon_size[0], preview.image_size[0]

    def queue(self, *jobs: Any) -> Any:
        """Puts jobs into the queue, in their states; returns the session, for what it notes of them."""
        known = part("state.session").use(StillQueue(list(jobs)))
        for job in jobs:
            known.note(job)
        return known

    def job(self, name: str, state: str = "waiting", **facts: Any) -> Any:
        """A job of the queue; `facts` are attributes of `QueuedJob`."""
        request = {"name": name, "prompt": name, "preset": "standard", "seed": 1, "generator": "auto",
                   "image": "", "views": "", "height_m": 1.0}  # fmt: skip
        return part("client.queue").QueuedJob(
            id=name, folder=SHOWN_FOLDER / name, request=request, state=state, **facts
        )

    def failed(self, code: str, message: str, hint: str = "", remedy: str = "") -> None:
        """A job that failed so."""
        failure = part("client.backend").Failure(code, message, hint, "", remedy)
        self.queue(self.job("treasure chest", "failed", stage="orbit", failure=failure))

    def models(self, *installed: str) -> None:
        """Only these models are there, and Mini, which comes with the backend."""
        self.backend.models = [
            dataclasses.replace(model, installed=model.name in (*installed, "mini")) for model in self.backend.models
        ]

    def image(self, name: str) -> bpy.types.Image:
        """A picture of the repository's examples."""
        return bpy.data.images.load(str(self.pictures / name), check_existing=True)

    def finished(self) -> Path:
        """The folder of a finished job with views and a preview."""
        return next(path for path in sorted(self.jobs_folder.iterdir()) if (path / "views").is_dir())


def show_only_viewport() -> Iterator[None]:
    """To be yielded from: the 3D viewport fills the window, with our tab in its sidebar, all panels open."""
    for cls in importlib.import_module(f"{PACKAGE}.im3d_blender").CLASSES:
        if issubclass(cls, bpy.types.Panel):
            _make_showable(cls)
    window, area = view()
    while len(window.screen.areas) > 1:
        # Making the viewport full screen from a timer crashes Blender.
        with bpy.context.temp_override(window=window, area=next(a for a in window.screen.areas if a != area)):
            bpy.ops.screen.area_close()
        yield
    window, area = view()
    area.spaces[0].show_region_ui = True
    area.spaces[0].show_region_toolbar = False
    area.spaces[0].overlay.show_overlays = False
    area.spaces[0].shading.type = "WIREFRAME"
    for obj in list(bpy.data.objects):
        bpy.data.objects.remove(obj)
    yield
    sidebar().active_panel_category = "IM-3D"
    yield


def _make_showable(cls: type) -> None:
    """Registers a panel again, open, and only there when `Stage.panels` names it: no script can open or close one."""
    bpy.utils.unregister_class(cls)
    own = getattr(cls, "poll", lambda context: True)
    cls.poll = classmethod(lambda _, context: (not Stage.panels or cls.__name__ in Stage.panels) and own(context))
    cls.bl_options = set(getattr(cls, "bl_options", ())) - {"DEFAULT_CLOSED"}
    bpy.utils.register_class(cls)


def view() -> tuple[bpy.types.Window, bpy.types.Area]:
    window = bpy.context.window_manager.windows[0]
    return window, next(a for a in window.screen.areas if a.type == "VIEW_3D")


def sidebar() -> bpy.types.Region:
    return region("UI")


def region(kind: str, window: int = 0) -> bpy.types.Region:
    """The region of that type in the area that fills a window."""
    area = bpy.context.window_manager.windows[window].screen.areas[0]
    return next(r for r in area.regions if r.type == kind)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
