"""The add-on's preferences: where things lie on disk, where jobs run, and what happens to memory and open jobs."""

from __future__ import annotations

from pathlib import Path

import bpy

from ...backend.im3d.shared.paths import home_folder as default_home
from ..client.environment import development_python
from ..core.job_request import GENERATORS
from . import events

# bl_ext.<repository>.im3d: Blender files an extension's preferences under its root package.
BASE_PACKAGE = (__package__ or "").rsplit(".", 2)[0]


def _folders_changed(preferences: PreferenceProperties, context: bpy.types.Context) -> None:
    events.announce(context, "folders")


def _connection_changed(preferences: PreferenceProperties, context: bpy.types.Context) -> None:
    events.announce(context, "connection")


class PreferenceProperties:
    """The properties of the registered class, which is `im3d_blender.ui.preferences`: it also draws them."""

    home: bpy.props.StringProperty(
        name="Backend",
        description=(
            "Folder of the backend and its models. It is kept when the add-on is updated or removed. "
            "A checkout with a development environment can be chosen as it is"
        ),
        subtype="DIR_PATH",
        default=str(default_home()),
        update=_folders_changed,
    )
    jobs_folder: bpy.props.StringProperty(
        name="Jobs",
        description="Folder that holds the job folders; it survives an update of the add-on",
        subtype="DIR_PATH",
        default=str(default_home() / "jobs"),
        update=_folders_changed,
    )
    generator: bpy.props.EnumProperty(
        name="Generator", description="The generator that new scenes start with", items=GENERATORS
    )
    remote_host: bpy.props.StringProperty(
        name="Remote Host",
        description="Name of a machine that runs the jobs, as your own ssh knows it; empty runs them on this machine",
        update=_connection_changed,
    )
    token: bpy.props.StringProperty(
        name="Hugging Face Token",
        description="Access token of your Hugging Face account, for models that require one; empty uses your own "
        "login. Blender keeps it in its preferences file, and only downloads get it",
        subtype="PASSWORD",
    )
    on_close: bpy.props.EnumProperty(
        name="When Blender Closes",
        description="What becomes of jobs that are not finished when Blender closes",
        items=[
            ("CONTINUE", "Continue Next Time", "Unfinished jobs go on from their last step when Blender starts again"),
            ("LEAVE", "Keep Paused", "Unfinished jobs stay in their folders until you resume them"),
        ],
    )
    free_when_idle: bpy.props.BoolProperty(
        name="Free Memory When Idle",
        description="Drop the models from memory when no job has run for a while",
        default=True,
    )
    idle_minutes: bpy.props.IntProperty(
        name="Minutes", description="Minutes without a job after which memory is freed", default=5, min=1, max=240
    )
    free_before_render: bpy.props.BoolProperty(
        name="Free Memory Before Rendering",
        description="Drop the models from memory when Blender starts to render and no job is running",
        default=True,
    )


def get_preferences(context: bpy.types.Context) -> PreferenceProperties:
    return context.preferences.addons[BASE_PACKAGE].preferences


def backend_folder(context: bpy.types.Context) -> Path:
    """The folder that was chosen for the backend: one that the installer fills, or a development environment."""
    return Path(bpy.path.abspath(get_preferences(context).home))


def home_folder(context: bpy.types.Context) -> Path:
    """Where models, caches and logs lie. A checkout is kept free of them: they are where its command line has them."""
    chosen = backend_folder(context)
    return chosen if development_python(chosen) is None else default_home()


def jobs_folder(context: bpy.types.Context) -> Path:
    return Path(bpy.path.abspath(get_preferences(context).jobs_folder))


def inputs_folder(context: bpy.types.Context) -> Path:
    """Where pictures that have no file of their own are kept for their jobs, also for running them again."""
    return jobs_folder(context) / "inputs"


def online() -> bool:
    """Whether the user lets add-ons use the network."""
    return bool(bpy.app.online_access)
