"""Blender as a process: saving a .blend and rendering the preview of a finished mesh.

bpy is never imported here. The scripts beside this file run in a process of their own, under the bpy of this Python or
under a Blender executable, with a clean environment and a time limit.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from im3d.core.storage import make_folder, replacing
from im3d.errors import DiskError, Im3dError, InputError, OutOfMemoryError
from im3d.shared.processes import bound, environment_without_python

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Blender:
    """A way to run a script under Blender.

    Attributes:
        command: What comes before the script's path.
        separator: What comes between the script's path and its arguments.
        name: For messages.
    """

    command: tuple[str, ...]
    separator: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return self.name


def find_blender(explicit: Path | None = None) -> Blender:
    """The Blender to use: the one that is named, this Python's bpy, or `blender` on the PATH, in that order.

    Raises:
        InputError: There is none, or the named one is not an executable.
    """
    if explicit is not None:
        found = shutil.which(str(explicit))
        if found is None:
            raise InputError(f"{explicit} is not a Blender executable.", "Give the path of the blender program.")
        return _executable(found)
    if importlib.util.find_spec("bpy") is not None:
        return Blender((sys.executable, "-I"), (), f"bpy in {sys.executable}")
    found = shutil.which("blender")
    if found is None:
        raise InputError(
            "There is no Blender to save or render with.", "Install im3d[blender], or name the Blender program."
        )
    return _executable(found)


def save_blend(
    blender: Blender, mesh: Path, name: str, blend: Path, *, size: int = 1080, timeout: float = 180.0
) -> None:
    """Saves a mesh as a .blend: the object at the origin, named, with a camera and a light for F12.

    The import is the add-on's own. The file appears complete or not at all.

    Args:
        blender: From `find_blender`.
        mesh: GLB file.
        name: Name of the object.
        blend: File to write; an older one is replaced. Its folder is made.
        size: Side in pixels of a later render.
        timeout: Seconds.

    Raises:
        InputError: The file cannot be written.
        DiskError: The disk is full.
        Im3dError: Blender failed or took too long.
    """
    make_folder(blend.resolve().parent)
    with replacing(blend.resolve()) as temporary:
        task = {"mesh": str(mesh.resolve()), "name": name, "blend": str(temporary), "size": size}
        _run_script(blender, "save_blend.py", task, temporary, timeout)


def render_preview(blender: Blender, mesh: Path, png: Path, *, size: int = 512, timeout: float = 180.0) -> None:
    """Renders a three-quarter view of a mesh with Cycles, as an opaque square PNG of `size` pixels.

    Args:
        blender: From `find_blender`.
        mesh: GLB file.
        png: File to write; it appears complete or not at all.
        size: Side in pixels.
        timeout: Seconds.

    Raises:
        InputError: The file cannot be written.
        DiskError: The disk is full.
        Im3dError: Blender failed or took too long.
    """
    with replacing(png.resolve()) as temporary:
        task = {"mesh": str(mesh.resolve()), "png": str(temporary), "size": size}
        _run_script(blender, "render_preview.py", task, temporary, timeout)


def _executable(path: str) -> Blender:
    options = ("--background", "--factory-startup", "--python-exit-code", "1", "--python")
    return Blender((path, *options), ("--",), path)


def _importing_file() -> Path:
    """The add-on's importing.py: at the root of the checkout or extension that this package is part of."""
    path = SCRIPTS.parents[2] / "im3d_blender" / "scene" / "importing.py"
    if not path.is_file():
        raise Im3dError(
            f"The add-on's {path.name} is missing beside the backend.", "Install im3d from its whole repository."
        )
    return path


def _run_script(blender: Blender, script: str, task: dict[str, Any], output: Path, timeout: float) -> None:
    """Runs one of the scripts and checks that it wrote `output`."""
    with tempfile.TemporaryDirectory(prefix="im3d-blender-") as work:
        task_file = Path(work) / "task.json"
        task_file.write_text(json.dumps({**task, "importing": str(_importing_file())}), encoding="utf-8")
        command = [*blender.command, str(SCRIPTS / script), *blender.separator, str(task_file)]
        try:
            done = subprocess.run(
                bound(command),
                env=_environment(work),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Im3dError(
                f"Blender did not finish {script} within {timeout:.0f} s.", "Try again when the machine is less busy."
            ) from error
        except OSError as error:
            raise InputError(
                f"{blender} cannot be started: {error.strerror}.", "Check the path of the Blender program."
            ) from error
    if done.returncode != 0 or not output.is_file():
        raise _failure(blender, script, done)


def _environment(work: str) -> dict[str, str]:
    """The caller's environment without its Python's variables and without the user's Blender settings."""
    return {**environment_without_python(), "BLENDER_USER_RESOURCES": work}


def _failure(blender: Blender, script: str, done: subprocess.CompletedProcess[str]) -> Im3dError:
    output = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    text = "\n".join(output)
    if "No space left" in text:
        return DiskError("The disk is full: Blender could not write its file.", "Free some space and try again.")
    if done.returncode == -9 or "MemoryError" in text:
        return OutOfMemoryError("Blender ran out of memory.", "Close other programs and try again.")
    # A Blender executable prints more after the exception that stopped the script.
    raised = [line for line in output if re.match(r"[\w.]+(Error|Exception): ", line)]
    last = (raised or output or ["no output"])[-1]
    return Im3dError(
        f"{blender} failed in {script} (status {done.returncode}): {last.rstrip('.')}.", "Check this Blender."
    )
