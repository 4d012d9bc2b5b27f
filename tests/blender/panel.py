"""Runs inside Blender, as inside.py does: what the panel says and offers, and what its buttons bring about."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import bpy
import numpy as np
from generating import module, submit
from inside import PACKAGE, empty_scene, install, main

TOKEN = "hf_Z9y8X7w6V5u4T3s2"


class Layout:
    """Stands in for Blender's layout and writes down what is drawn: (kind, text, whether it can be pressed)."""

    def __init__(self, drawn: list[tuple[str, str, bool]] | None = None, parent: Layout | None = None) -> None:
        self.drawn = drawn if drawn is not None else []
        self.parent = parent
        self.enabled = True

    @property
    def can_be_pressed(self) -> bool:
        return self.enabled and (self.parent is None or self.parent.can_be_pressed)

    def _group(self, *_: Any, **__: Any) -> Layout:
        return Layout(self.drawn, self)

    row = column = box = grid_flow = split = _group

    def panel_prop(self, *_: Any) -> tuple[Layout, None]:
        return Layout(self.drawn, self), None

    def _note(self, kind: str, text: str) -> SimpleNamespace:
        self.drawn.append((kind, text, self.can_be_pressed))
        return SimpleNamespace()

    def label(self, text: str = "", **_: Any) -> None:
        self._note("label", text)

    def operator(self, name: str, text: str | None = None, **_: Any) -> SimpleNamespace:
        return self._note(name, text or "")

    def prop(self, data: Any, name: str, **_: Any) -> None:
        self._note("prop", name)

    def menu(self, name: str, text: str = "", **_: Any) -> None:
        self._note(name, text)

    def template_ID(self, data: Any, name: str, **_: Any) -> None:  # noqa: N802 - as Blender calls it
        self._note("template_ID", name)

    def progress(self, factor: float, text: str) -> None:
        self._note("progress", text)

    def prop_enum(self, data: Any, name: str, value: str, text: str = "") -> None:
        self._note("prop_enum", text)

    def prop_search(self, *_: Any, **__: Any) -> None: ...

    template_icon = template_list = prop_search


def drawn(class_name: str) -> list[tuple[str, str, bool]]:
    layout = Layout()
    cls = getattr(bpy.types, class_name)
    cls.draw(SimpleNamespace(layout=layout), bpy.context)
    return layout.drawn


def start(extension: str, jobs: str) -> Any:
    install(extension)
    empty_scene()
    bpy.context.preferences.system.use_online_access = True
    bpy.context.preferences.addons[PACKAGE].preferences.jobs_folder = jobs
    module("state.backend_state").refresh(bpy.context)
    wrapping = module("ui.wrapping")
    wrapping.in_lines = wrapping.break_lines
    wrapping.break_lines = lambda text, *_: [text]  # there is no sidebar whose width counts
    return bpy.context.scene.im3d


def texts() -> dict[str, Any]:
    """What the main panel says below its Generate button, and whether that can be pressed."""
    everything = drawn("IM3D_PT_main")
    at = next(n for n, (kind, *_) in enumerate(everything) if kind == "im3d.generate")
    below = everything[at + 1 :]
    return {
        "enabled": everything[at][2], "reason": " ".join(text for kind, text, _ in below if kind == "label"),
        "buttons": [text for kind, text, _ in below if kind == "im3d.download_model"],
        "generator": next((text for kind, text, _ in everything if kind == "IM3D_MT_generator"), None),
    }  # fmt: skip


def picture(name: str) -> bpy.types.Image:
    """A brown disc on light grey."""
    y, x = np.mgrid[:96, :96] - 48
    pixels = np.ones((96, 96, 4), np.float32)
    pixels[..., :3] = np.where((x**2 + y**2 < 30**2)[..., None], (0.5, 0.3, 0.1), (0.9, 0.9, 0.91))
    image = bpy.data.images.new(name, 96, 96, alpha=True)
    image.pixels.foreach_set(pixels.ravel())
    return image


def reasons(extension: str, jobs: str) -> dict[str, Any]:
    """What keeps Generate from being pressed, and what "Automatic" takes."""
    settings = start(extension, jobs)
    opened_on, said = settings.source, {"image": texts()}
    settings.image = picture("cup.png")
    said["ready"] = texts()
    settings.generator = "sv3d_p"
    said["generator"] = texts()
    settings.source, settings.generator = "VIEWS", "auto"
    said["views"] = texts()
    settings.source = "PROMPT"
    said["prompt"] = texts()
    settings.prompt = "a cup"
    said["words"] = texts()
    state = module("state.backend_state").state
    state.task = SimpleNamespace(title="FLUX", state=SimpleNamespace(done=False, fraction=0.25, error="", remedy=""))
    state.task_model, state.task_place = "flux2_klein", "generate"
    said["fetching"] = texts()
    bars = [[text for kind, text, _ in drawn(p) if kind == "progress"] for p in ("IM3D_PT_main", "IM3D_PT_models")]
    state.task = None
    bpy.context.preferences.addons[PACKAGE].preferences.remote_host = "elsewhere"
    said["remote"] = texts()
    return {"opened_on": opened_on, "said": said, "bars": bars, "menu": [t for _, t, _ in drawn("IM3D_MT_generator")]}


def listed(extension: str, jobs: str) -> dict[str, Any]:
    start(extension, jobs)
    japanese = module("ui.wrapping").in_lines("モデルが必要です。", 8, len)
    return {"drawn": [(kind, text) for kind, text, _ in drawn("IM3D_PT_models")], "japanese": japanese}


def until(done: Any) -> None:
    """Ticks as the session's timer does."""
    session, state, cutout = module("state.session"), module("state.backend_state"), module("state.cutout")
    for _ in range(4000):
        session.advance(bpy.context, session.current())
        state.advance(bpy.context)
        cutout.advance(bpy.context)
        if done():
            return
        session.time.sleep(0.005)
    raise AssertionError("it did not end")


def a_photograph(extension: str, jobs: str) -> dict[str, Any]:
    """A job fails for want of the background remover, whose download goes on with it."""
    start(extension, jobs)
    state, session = module("state.backend_state").state, module("state.session")
    job = submit("photo")
    until(lambda: job.state == "failed")
    layout = Layout()
    module("ui.errors").draw_failure(layout, bpy.context, job)
    buttons = [text for kind, text, _ in layout.drawn if kind == "im3d.download_model"]
    bpy.ops.im3d.download_model(model="isnet", accept=True, place=job.id)
    layout = Layout()
    module("ui.errors").draw_failure(layout, bpy.context, job)
    stops = [kind for kind, *_ in layout.drawn if kind == "im3d.cancel_install"]
    until(lambda: state.task is None and not session.current().is_active)
    (now,) = session.current().queue.jobs
    return {"buttons": buttons, "stops": stops, "state": now.state, "objects": [o.name for o in bpy.data.objects]}


def background(extension: str, jobs: str) -> dict[str, Any]:
    """Remove Background, first without the network that it needs, then with it; and what the job is given."""
    settings = start(extension, jobs)
    settings.image, settings.mask = picture("cup.png"), None
    try:
        bpy.ops.im3d.remove_background()
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    module("state.session").ensure(bpy.context)
    offered = [text for kind, text, _ in drawn("IM3D_PT_main") if kind == "im3d.download_model"]
    bpy.ops.im3d.download_model(model="isnet", accept=True, place="cutout")
    until(lambda: settings.cutout is not None)
    inputs = module("ops.generate").panel_inputs(bpy.context)
    warned = [text for kind, text, _ in drawn("IM3D_PT_main") if kind == "label"]
    settings.mask = picture("mask.png")
    masked = module("ops.generate").panel_inputs(bpy.context)
    dropped = settings.cutout is None
    settings.mask = None
    bpy.ops.im3d.remove_background()
    bpy.ops.im3d.restore_background()
    return {
        "refused": refused, "offered": offered, "warned": " ".join(warned), "image": inputs["image"],
        "name": inputs["name"],        "mask": inputs.get("mask", ""), "masked": masked["mask"], "dropped": dropped,
        "restored": module("ops.generate").panel_inputs(bpy.context)["image"],
    }  # fmt: skip


def real_cutout(extension: str, jobs: str) -> dict[str, Any]:
    """With the real backend, on a plain background."""
    settings = start(extension, jobs)
    settings.image = picture("cup.png")
    bpy.ops.im3d.remove_background()
    pixels = np.empty(96 * 96 * 4, np.float32)
    settings.cutout.pixels.foreach_get(pixels)
    alpha = pixels.reshape(96, 96, 4)[..., 3]
    return {
        "share": float(alpha.mean()), "inside": float(alpha[48, 48]), "outside": float(alpha[0, 0]),
        "file": bpy.path.abspath(settings.cutout.filepath), "image": settings.image.name,
    }  # fmt: skip


def token(extension: str, jobs: str) -> dict[str, Any]:
    """A gated model: refused without a token, downloaded with it; what is left of the token anywhere."""
    settings = start(extension, jobs)
    state = module("state.backend_state").state
    settings.image, settings.generator = picture("cup.png"), "sv3d_p"
    module("state.session").ensure(bpy.context)
    bpy.ops.im3d.download_model(model="sv3d_p", accept=True, place="generate")
    until(lambda: state.task is not None and state.task.state.done)
    refused = [(kind, text) for kind, text, _ in drawn("IM3D_PT_main") if kind in ("prop", "wm.url_open")]
    bpy.context.preferences.addons[PACKAGE].preferences.token = f" {TOKEN} "
    bpy.ops.im3d.download_model(model="sv3d_p", accept=True, place="generate")
    until(lambda: state.task is None)
    job = submit("fail")
    until(lambda: job.state == "failed")
    (job.folder / "log.txt").write_text(f"somebody printed {TOKEN}\nssh: connect to host render7 port 22")
    bpy.context.preferences.addons[PACKAGE].preferences.remote_host = "ann@render7 -p 22"
    report = module("state.diagnostics").collect(bpy.context, module("state.session").current(), job)
    return {"refused": refused, "report": report}


if __name__ == "__main__":
    main(globals())
