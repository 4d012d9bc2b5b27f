"""Installing the backend and its models, and what to send to the people who can help."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import bpy
from bpy.app.translations import pgettext_iface as _

from ..scene.pictures import PictureError
from ..state import backend_state, cutout, diagnostics, session
from ..state.preferences import online
from ..ui.remedies import draw_account
from ..ui.wrapping import wrapped

ACCOUNT = "Requires a Hugging Face account: accept the terms on the model page, then paste your token."
DIALOG_WIDTH = 360  # at scale 1
OFFLINE = "Online access is switched off in Blender."
COMMERCIAL = {
    "yes": "Commercial use: allowed",
    "no": "Commercial use: not allowed",
    "conditions": "Commercial use: allowed under conditions",
}


class IM3D_OT_install_backend(bpy.types.Operator):
    """Install the program that makes the objects, with everything it needs, into its own folder"""

    bl_idname = "im3d.install_backend"
    bl_label = "Install Backend"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return not backend_state.is_working()

    def execute(self, context: bpy.types.Context) -> set[str]:
        if not online():
            self.report({"ERROR"}, OFFLINE)
            return {"CANCELLED"}
        try:
            backend_state.install(context)
        except LookupError as error:
            text = bpy.app.translations.pgettext_iface("The backend cannot be installed on {}.")
            self.report({"ERROR"}, text.format(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class IM3D_OT_cancel_install(bpy.types.Operator):
    """Stop; what was downloaded is kept for the next time"""

    bl_idname = "im3d.cancel_install"
    bl_label = "Stop"

    def execute(self, context: bpy.types.Context) -> set[str]:
        backend_state.cancel_install()
        backend_state.cancel_download()
        return {"FINISHED"}


class IM3D_OT_download_model(bpy.types.Operator):
    """Read the licence of this model and download it"""

    bl_idname = "im3d.download_model"
    bl_label = "Download Model"

    model: bpy.props.StringProperty(name="Model", options={"SKIP_SAVE"})
    # Where its progress is shown and what goes on afterwards; see BackendState.
    place: bpy.props.StringProperty(options={"HIDDEN", "SKIP_SAVE"})
    accept: bpy.props.BoolProperty(
        name="I accept the licence", description="You have read the licence and accept it", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return backend_state.is_ready(context) and not backend_state.is_working()

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=DIALOG_WIDTH, confirm_text="Download")

    def draw(self, context: bpy.types.Context) -> None:
        facts = backend_state.model(self.model)
        layout = self.layout
        if facts is None:
            return
        layout.label(text=f"{facts.title} ({facts.size})", translate=False)
        wrapped(layout, context, facts.licence, "TEXT", dialog=DIALOG_WIDTH)
        layout.label(text=COMMERCIAL[facts.commercial])
        layout.operator("wm.url_open", text="Read the Licence", icon="URL").url = facts.licence_url
        if facts.gated:
            wrapped(layout, context, _(ACCOUNT), "USER", dialog=DIALOG_WIDTH)
            draw_account(layout, context, facts)
        layout.prop(self, "accept")

    def execute(self, context: bpy.types.Context) -> set[str]:
        if backend_state.model(self.model) is None:
            self.report({"ERROR"}, "There is no such model.")
            return {"CANCELLED"}
        if not self.accept:
            self.report({"ERROR"}, "Accept the licence to download the model.")
            return {"CANCELLED"}
        if not online():
            self.report({"ERROR"}, OFFLINE)
            return {"CANCELLED"}
        backend_state.download(context, self.model, self.place, _continuation(self.place))
        return {"FINISHED"}


def _continuation(place: str) -> Callable[[bpy.types.Context], None] | None:
    """What was waiting for the model: the cut-out of the panel's image, or a job that failed for want of it."""
    if place == "cutout":
        return _cut_out_again
    return functools.partial(_resume, job_id=place) if place not in ("", "generate", "better") else None


def _cut_out_again(context: bpy.types.Context) -> None:
    with contextlib.suppress(PictureError):
        cutout.start(context)


def _resume(context: bpy.types.Context, job_id: str) -> None:
    known = session.current()
    job = known.find(job_id) if known is not None else None
    if job is not None and job.state == "failed":
        with contextlib.suppress(OSError):  # its folder is gone: it stays failed
            session.resume(context, job)


class IM3D_OT_copy_diagnostics(bpy.types.Operator):
    """Copy information for a bug report: versions, device and the end of the log, without names, paths and prompts"""

    bl_idname = "im3d.copy_diagnostics"
    bl_label = "Copy Diagnostics"

    job: bpy.props.StringProperty(name="Job", description="Id of a job of the queue", options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        known = session.current()
        job = known.find(self.job) if known is not None else None
        context.window_manager.clipboard = diagnostics.collect(context, known, job)
        self.report({"INFO"}, "The diagnostics are in the clipboard.")
        return {"FINISHED"}


CLASSES = [IM3D_OT_install_backend, IM3D_OT_cancel_install, IM3D_OT_download_model, IM3D_OT_copy_diagnostics]
