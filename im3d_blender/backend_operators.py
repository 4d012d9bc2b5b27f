"""Installing the backend and its models, and what to send to the people who can help."""

from __future__ import annotations

import bpy

from . import backend_state, diagnostics, session
from .preferences import online
from .wrapping import wrapped

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
            self.report({"ERROR"}, str(error))
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
    accept: bpy.props.BoolProperty(
        name="I accept the licence", description="You have read the licence and accept it", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return backend_state.is_ready(context) and not backend_state.is_working()

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=360)

    def draw(self, context: bpy.types.Context) -> None:
        facts = backend_state.model(self.model)
        layout = self.layout
        if facts is None:
            return
        translated = bpy.app.translations.pgettext_iface
        layout.label(text=f"{facts.title} ({facts.size})", translate=False)
        layout.label(text=facts.licence, icon="TEXT", translate=False)
        layout.label(text=COMMERCIAL[facts.commercial])
        layout.operator("wm.url_open", text="Read the Licence", icon="URL").url = facts.licence_url
        if facts.gated:
            wrapped(layout, context, translated("Its owner asks for a login: accept the terms on its page first."))
            layout.operator("wm.url_open", text="Page of the Model", icon="URL").url = facts.page
        layout.prop(self, "accept")

    def execute(self, context: bpy.types.Context) -> set[str]:
        if backend_state.model(self.model) is None:
            self.report({"ERROR"}, "There is no such model.")
            return {"CANCELLED"}
        if not self.accept:
            self.report({"ERROR"}, "The model is downloaded when you have accepted its licence.")
            return {"CANCELLED"}
        if not online():
            self.report({"ERROR"}, OFFLINE)
            return {"CANCELLED"}
        backend_state.download(context, self.model)
        return {"FINISHED"}


class IM3D_OT_copy_diagnostics(bpy.types.Operator):
    """Copy what helps to find the fault: versions, device and the end of the log, without names, paths and prompts"""

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
