"""What is known of the backend: whether it is installed, its models, and the installation or download under way.

Panels draw from the snapshot that is kept here; `refresh` reads the disk, `advance` is called by the session's timer.
"""

from __future__ import annotations

import os
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bpy

from ..client.environment import PYTHON_VARIABLE, backend_command, child_environment
from ..client.tasks import Task
from ..core.model_facts import ModelFacts, read_models
from ..install import Installation, Installed, InstallProgress, InstallSpec, default_spec, find_installed
from .preferences import backend_folder, get_preferences, home_folder, online

MANIFEST = Path(__file__).resolve().parents[2] / "blender_manifest.toml"


@dataclass
class BackendState:
    """The snapshot.

    Attributes:
        installed: The backend in the chosen home, None when there is none (on a remote host nobody looks).
        offer: What would be installed; None until the graphics driver has answered.
        no_offer: The platform on which nothing can be installed, "" on all others.
        models: All models, with whether they are installed.
        installation: Under way, or None.
        progress: Of the installation, the last one also after it ended in a failure.
        task: The model download under way, or the last one if it failed.
        task_model: Name of the model that it gets.
        task_place: Where it was started, and so is shown: "generate", "better", "cutout", "" (the list of models) or a
            job's id.
        then: What goes on when the model is there.
        shown_offer: What of the offer was known at the last tick.
    """

    installed: Installed | None = None
    offer: InstallSpec | None = None
    no_offer: str = ""
    models: list[ModelFacts] = field(default_factory=list)
    installation: Installation | None = None
    progress: InstallProgress | None = None
    task: Task | None = None
    task_model: str = ""
    task_place: str = ""
    then: Callable[[bpy.types.Context], None] | None = None
    shown_offer: tuple[bool, str] = (False, "")


state = BackendState()


def is_ready(context: bpy.types.Context) -> bool:
    """Whether jobs can be run: the backend is installed here, or runs on another machine."""
    return state.installed is not None or has_own_python() or bool(get_preferences(context).remote_host.strip())


def has_own_python() -> bool:
    """Whether the environment names the Python of a backend that nobody has to install: a developer's checkout."""
    return bool(os.environ.get(PYTHON_VARIABLE))


def is_working() -> bool:
    """Whether something is being installed or downloaded."""
    return state.installation is not None or (state.task is not None and not state.task.state.done)


def model(name: str) -> ModelFacts | None:
    return next((m for m in state.models if m.name == name), None)


def refresh(context: bpy.types.Context) -> None:
    """Looks at the home folder again."""
    state.installed = find_installed(backend_folder(context))
    state.models = read_models(home_folder(context))
    if state.installed is None and state.offer is None and not state.no_offer:
        threading.Thread(target=_make_offer, daemon=True).start()  # the graphics driver takes up to a second to answer


def _make_offer() -> None:
    try:
        state.offer = default_spec(version(), sys.executable)
    except LookupError as error:
        state.no_offer = str(error)


def install(context: bpy.types.Context) -> None:
    """Starts installing the backend that this add-on brings into the home folder.

    Raises:
        LookupError: There is none for this kind of machine; the text names it.
    """
    spec = state.offer or default_spec(version(), sys.executable)
    state.installation = Installation(home_folder(context), spec, online())
    state.progress = None
    state.installation.start()


def version() -> str:
    """The add-on's version, as its manifest says it."""
    manifest: dict[str, Any] = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return str(manifest["version"])


def cancel_install() -> None:
    if state.installation is not None:
        state.installation.cancel()


def download(
    context: bpy.types.Context,
    name: str,
    place: str = "",
    then: Callable[[bpy.types.Context], None] | None = None,
) -> None:
    """Starts downloading a model whose licence the user has accepted.

    Args:
        place, then: See `BackendState`.
    """
    facts = model(name)
    state.task_model, state.task_place, state.then = name, place, then
    arguments = ["models", "download", name, "--accept-licence", "--json"]
    # The token goes by the environment: a command line can be seen by everybody on the machine.
    token = get_preferences(context).token
    state.task = start_tool(context, facts.title if facts is not None else name, arguments, token)


def start_tool(context: bpy.types.Context, title: str, arguments: list[str], token: str = "") -> Task:
    """Starts another command of the backend that serves."""
    serve = backend_command(backend_folder(context))
    environment = child_environment(home_folder(context), token)
    return Task(title, [*serve[: serve.index("serve")], *arguments], environment)


def cancel_download() -> None:
    if state.task is not None:
        state.task.cancel()
        state.task = state.then = None


def advance(context: bpy.types.Context) -> bool:
    """Polls what is under way; True when the panel has something new to show."""
    known = (state.offer is not None, state.no_offer)
    changed = known != state.shown_offer
    state.shown_offer = known
    if state.installation is not None:
        state.progress = state.installation.poll()
        changed = True
        if state.progress.done:
            state.installation = None
            refresh(context)
    if state.task is not None and not state.task.state.done:
        changed = True
        if state.task.poll().done:
            refresh(context)
            if not state.task.state.error:
                then, state.task, state.then = state.then, None, None
                if then is not None:
                    then(context)
    return changed


def close() -> None:
    """Stops what is under way; an installation can be continued later."""
    cancel_install()
    cancel_download()
    state.installation = None
