"""The states of the panel that are pictured: name, what shows it, and a function that arranges it.

To add one, write a function with its name and mark it:

    @state
    def token_missing(stage):
        '''The sentence that says what is seen.'''
        stage.models("mini")
        stage.settings.generator = "sv3d_p"

It starts from `Stage.reset` (see there) and changes properties, `stage.backend` (the snapshot that the panel draws
from), or the queue (`stage.queue(stage.job("barrel", "running", fraction=0.5))`, `stage.failed(code, message, …)`).
What the picture shows is the sidebar, unless `state` is told otherwise:

    @state(shows="POPUP")          a dialog or a menu that the function opens, closed with Esc afterwards
    @state(shows="PREFERENCES")    the add-on's preferences
    @state(shows="FILES")          the options beside a file browser that the function opens

Every state is drawn in both Blenders, in English at scale 1, dark, and in German at scale 2, light. A text that is cut
off in one of them, or a picture that is missing, fails the run. `python tests/window/run.py sid --states token_missing`
draws one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bpy
from stage import Stage, part

SIDEBAR, POPUP, PREFERENCES, FILES = "SIDEBAR", "POPUP", "PREFERENCES", "FILES"
PROMPT = "a wooden treasure chest with iron bands"


@dataclass(frozen=True)
class State:
    """A state of the panel.

    Attributes:
        name: Of the picture.
        shows: What is pictured.
        arrange: Brings it about.
    """

    name: str
    shows: str
    arrange: Callable[[Stage], None]


STATES: list[State] = []


def state(arrange: Callable[[Stage], None] | None = None, *, shows: str = SIDEBAR, name: str = "") -> Any:
    """Marks a function, by default under its own name."""

    def add(function: Callable[[Stage], None]) -> Callable[[Stage], None]:
        STATES.append(State(name or function.__name__, shows, function))
        return function

    return add(arrange) if arrange is not None else add


# ---------------------------------------------------------------- the pictures of the documents


@state
def panel_idle(stage: Stage) -> None:
    """The panel before a job, with its details."""
    idle(stage)
    stage.panels.add("IM3D_PT_main")


@state
def panel_running(stage: Stage) -> None:
    running(stage)
    stage.panels.add("IM3D_PT_queue")


@state
def panel_history(stage: Stage) -> None:
    stage.panels.add("IM3D_PT_jobs")


@state
def panel_error(stage: Stage) -> None:
    _failed(stage, FAILURES["background"])
    stage.panels.add("IM3D_PT_queue")


# ---------------------------------------------------------------- what a job is made from


@state
def prompt_empty(stage: Stage) -> None:
    stage.settings.source = "PROMPT"


@state
def idle(stage: Stage) -> None:
    settings = stage.settings
    settings.source, settings.prompt, settings.seed = "PROMPT", PROMPT, 4711
    settings.lock_seed = settings.show_details = True


@state
def image_empty(stage: Stage) -> None:
    stage.settings.source = "IMAGE"


@state
def image_chosen(stage: Stage) -> None:
    settings = stage.settings
    settings.source, settings.image = "IMAGE", stage.image("refrigerator.png")
    settings.show_details = settings.know_elevation = settings.as_asset = True


@state
def orbit_empty(stage: Stage) -> None:
    stage.settings.source = "VIEWS"


@state
def orbit_chosen(stage: Stage) -> None:
    settings = stage.settings
    settings.source, settings.views = "VIEWS", str(stage.pictures / "playhouse")
    settings.show_details = settings.know_elevation = True


def _cutting(stage: Stage, **facts: Any) -> None:
    """Remove Background under way, or as it ended."""
    stage.models()
    image = stage.settings.image = stage.image("refrigerator.png")
    state, task = part("state.cutout").state, part("client.tasks").TaskState(**facts)
    state.task = SimpleNamespace(state=task, cancel=lambda: None, poll=lambda: task)
    state.scene, state.image, state.mask = bpy.context.scene.name, image.name, ""


@state
def background_being_removed(stage: Stage) -> None:
    _cutting(stage)


@state
def background_removed(stage: Stage) -> None:
    settings = stage.settings
    settings.image, settings.mask = stage.image("refrigerator.png"), stage.image("refrigerator.png")
    settings.cutout = stage.image("refrigerator.png")
    part("state.cutout").state.warnings = [
        "The object touches the left and the bottom of the picture and may be cut off."
    ]


@state
def background_not_removed(stage: Stage) -> None:
    _, message, hint, remedy = FAILURES["background"]
    _cutting(stage, done=True, error=f"{message} {hint}", remedy=remedy)


@state
def background_remover_on_its_way(stage: Stage) -> None:
    background_not_removed(stage)
    _fetch(stage, "isnet", "cutout", fraction=0.3)


def _generator(stage: Stage, generator: str) -> None:
    stage.models()
    stage.settings.image, stage.settings.generator = stage.image("refrigerator.png"), generator


for _item in part("core.job_request").GENERATORS:
    state(partial(_generator, generator=_item[0]), name=f"generator_{_item[0]}")


@state
def prompt_without_image_model(stage: Stage) -> None:
    stage.models()
    stage.settings.source, stage.settings.prompt = "PROMPT", PROMPT


# ---------------------------------------------------------------- the backend


@state
def not_installed(stage: Stage) -> None:
    stage.backend.installed = None
    stage.models()


@state
def not_installed_offline(stage: Stage) -> None:
    stage.backend.installed = None
    bpy.context.preferences.system.use_online_access = False


@state
def not_installed_nvidia(stage: Stage) -> None:
    stage.backend.installed = None
    stage.offer("cu130")


@state
def not_supported(stage: Stage) -> None:
    stage.backend.installed = stage.backend.offer = None
    stage.backend.no_offer = "linux-riscv64"


@state
def development_environment(stage: Stage) -> None:
    stage.backend.installed = SimpleNamespace(version="", accelerator="", python=Path("python"), home=Path())


@state
def installing(stage: Stage) -> None:
    stage.backend.installed = None
    stage.backend.installation = SimpleNamespace(cancel=lambda: None, poll=lambda: stage.backend.progress)
    stage.backend.progress = part("install").InstallProgress("packages", 0.42, "Downloading packages")


def _install_failed(stage: Stage, code: str) -> None:
    failure = part("install.failures").InstallError(code, "install.log").failure
    stage.backend.installed = None
    stage.backend.progress = part("install").InstallProgress("packages", 0.1, "", failure, True)


for _code in ("certificate", "ensurepip", "network", "place"):
    state(partial(_install_failed, code=_code), name=f"install_failed_{_code}")


@state
def remote_host(stage: Stage) -> None:
    stage.preferences.remote_host = "me@workstation.example.org"
    stage.backend.installed = None


@state
def remote_host_offline(stage: Stage) -> None:
    stage.preferences.remote_host = "me@workstation.example.org"
    bpy.context.preferences.system.use_online_access = False


@state
def no_models(stage: Stage) -> None:
    stage.models()


@state
def downloading(stage: Stage) -> None:
    _download(stage, fraction=0.3)


@state
def download_starts(stage: Stage) -> None:
    _download(stage, fraction=None)


@state
def download_failed(stage: Stage) -> None:
    _download(stage, done=True, error="The model hub cannot be reached. Check the network and try again.")


@state
def download_wants_a_token(stage: Stage) -> None:
    _download(stage, done=True, **ACCOUNT)


def _download(stage: Stage, **facts: Any) -> None:
    _generator(stage, "sv3d_p")
    _fetch(stage, "sv3d_p", "generate", **facts)


def _fetch(stage: Stage, model: str, place: str, **facts: Any) -> None:
    """A model's download, under way or failed, where it was started."""
    state = part("client.tasks").TaskState(**facts)
    title = next(known.title for known in stage.backend.models if known.name == model)
    stage.backend.task = SimpleNamespace(title=title, state=state, cancel=lambda: None, poll=lambda: state)
    stage.backend.task_model, stage.backend.task_place = model, place


# ---------------------------------------------------------------- jobs


@state
def running(stage: Stage) -> None:
    """A job under way with its pictures, two that wait."""
    made = stage.finished()
    frames = sorted((made / "views").glob("*.png"))
    stage.queue(
        stage.job(made.name, "running", stage="fit", step=740, steps=1200, fraction=0.58, eta_s=41.0,
                  preview=made / "preview.png", frames=frames),
        stage.job("barrel"),
        stage.job("market stall"),
    )  # fmt: skip


@state
def starting(stage: Stage) -> None:
    stage.queue(stage.job("barrel", "running"))


@state
def each_stage(stage: Stage) -> None:
    """The words for all stages, with the longest time left."""
    stages = part("ui.queue").STAGES
    stage.queue(*(stage.job(name, "running", stage=name, fraction=0.1, eta_s=5000.0) for name in stages))


@state
def cancelled(stage: Stage) -> None:
    stage.queue(stage.job("barrel", "cancelled", stage="fit", fraction=0.4))


@state
def arriving(stage: Stage) -> None:
    stage.queue(stage.job("barrel", "done", fraction=1.0))


@state
def done_with_a_note(stage: Stage) -> None:
    job = stage.job("barrel", "done", fraction=1.0)
    known = stage.queue(job)
    known.arriving.clear()
    known.notes[job.id] = part("state.arrivals").OTHER_FILE


WARNINGS = [
    "The object touches the left of the picture and may be cut off.",
    "The preview shows the splats, because Blender could not render the mesh: Failed to denoise.",
]


@state
def running_with_warnings(stage: Stage) -> None:
    """What the backend warns of, while a model is loaded."""
    stage.queue(
        stage.job("barrel", "running", stage="orbit", step=0, steps=21, fraction=0.1, eta_s=90.0, warnings=WARNINGS[:1])
    )


@state
def done_with_warnings(stage: Stage) -> None:
    """A finished job that has something to say, and the button that clears the list."""
    known = stage.queue(stage.job("barrel", "done", fraction=1.0, warnings=WARNINGS), stage.job("jug", "cancelled"))
    known.arriving.clear()


@state
def left_unfinished(stage: Stage) -> None:
    stage.queue().left = [Path("a"), Path("b")]


FAILURES = {
    "bad_input": ("bad_input", "There are no pictures in this folder.", "Choose a folder with two or more.", ""),
    "background": ("bad_input", "The object cannot be separated from this background.",
                   "Use the background remover, or give a mask.", "download isnet"),
    "model_missing": ("model_missing", "SV3D + elevation is not installed.",
                      "Download it first (9.4 GB).", "download sv3d_p"),
    "licence": ("model_missing", "The licence of SV3D + elevation has not been accepted.", "Read it and accept it.",
                "licence sv3d_p"),
    "token": ("model_missing", "SV3D + elevation requires a Hugging Face account.",
              "Accept the terms on the model page, then paste your token.", "token sv3d_p"),
    "out_of_memory": ("out_of_memory", "The GPU's memory does not hold this job.",
                      "Close other programs, or use the draft preset.", "draft"),
    "disk": ("disk", "The disk is full.", "Free some space and continue the job.", "resume"),
    "internal": ("internal", "Something in IM-3D broke: ValueError.", "Copy the diagnostics and report them.",
                 "resume"),
    "backend_missing": ("backend_missing", "The backend is not installed.", "Install it.", ""),
    "backend_died": ("backend_died", "The backend ended unexpectedly, twice in the same step of this job.",
                     "The log says more; try again, or with the draft preset.", "resume"),
    "backend_hung": ("backend_hung", "The job reported nothing for half an hour.", "Try again.", "resume"),
    "protocol": ("protocol", "The backend is older than its other half.", "Update the backend.", ""),
    "remote": ("remote", "mesh.glb did not come back.", "Try again.", "resume"),
    "import": ("import", "mesh.glb could not be imported: the file is damaged.", "", ""),
}  # fmt: skip


ACCOUNT = {
    "error": "SV3D requires a Hugging Face account. Accept the terms on the model page, then paste your token.",
    "remedy": "token sv3d_p",
}


def _failed(stage: Stage, failure: tuple[str, str, str, str]) -> None:
    stage.models()
    stage.failed(*failure)


for _name, _failure in FAILURES.items():
    state(partial(_failed, failure=_failure), name=f"failed_{_name}")


@state
def failed_and_fetching(stage: Stage) -> None:
    """The download that a failed job was missing, started there."""
    _failed(stage, FAILURES["background"])
    _fetch(stage, "isnet", "treasure chest", fraction=0.3)


@state
def failed_and_refused(stage: Stage) -> None:
    _failed(stage, FAILURES["model_missing"])
    _fetch(stage, "sv3d_p", "treasure chest", done=True, **ACCOUNT)


@state
def failed_offline(stage: Stage) -> None:
    stage.models()
    stage.failed(*FAILURES["model_missing"])
    bpy.context.preferences.system.use_online_access = False


# ---------------------------------------------------------------- finished jobs


@state
def history(stage: Stage) -> None:
    """Finished jobs, the last one chosen."""
    stage.session.index = 0


@state
def history_with_warnings(stage: Stage) -> None:
    stage.session.index = 0
    stage.session.jobs[0].warnings = "\n".join(WARNINGS)


@state
def history_empty(stage: Stage) -> None:
    stage.session.jobs.clear()


@state
def history_nothing_found(stage: Stage) -> None:
    stage.session.search = "spaceship"


# ---------------------------------------------------------------- dialogs, menus, preferences


@state(shows=POPUP)
def menu_import(stage: Stage) -> None:
    bpy.ops.wm.call_menu(name="TOPBAR_MT_file_import")


@state(shows=POPUP)
def menu_generator(stage: Stage) -> None:
    stage.models()
    bpy.ops.wm.call_menu(name="IM3D_MT_generator")


@state(shows=POPUP)
def dialog_dropped_pictures(stage: Stage) -> None:
    """Several pictures at once: one object each, or views of one?"""
    files = [{"name": "refrigerator.png"}] * 4
    bpy.ops.im3d.drop_pictures("INVOKE_DEFAULT", directory=str(stage.pictures), files=files)


@state(shows=FILES)
def files_batch(stage: Stage) -> None:
    bpy.ops.im3d.batch("INVOKE_DEFAULT")


def _download_dialog(stage: Stage, model: str) -> None:
    stage.models()
    bpy.ops.im3d.download_model("INVOKE_DEFAULT", model=model)


for _model in ("sv3d_p", "isnet"):  # behind a login, and not
    state(partial(_download_dialog, model=_model), shows=POPUP, name=f"dialog_download_{_model}")


@state(shows=PREFERENCES)
def preferences(stage: Stage) -> None:
    """The add-on's preferences."""


@state(shows=PREFERENCES)
def preferences_not_installed(stage: Stage) -> None:
    stage.backend.installed = None


@state(shows=FILES)
def files_import(stage: Stage) -> None:
    bpy.ops.im3d.import_job("INVOKE_DEFAULT")
