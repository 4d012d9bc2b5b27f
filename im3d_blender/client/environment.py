"""How the backend is started: the command, and an environment in which nothing of Blender's Python leaks into it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from ...backend.im3d.shared.processes import environment_without_python

# Every cache of the backend's libraries lies under its home, so that deleting the folder leaves nothing behind.
CACHES = {
    "HF_HOME": "cache/huggingface",
    "TORCH_HOME": "cache/torch",
    "TORCHINDUCTOR_CACHE_DIR": "cache/inductor",
    "TRITON_CACHE_DIR": "cache/triton",
    "TORCH_EXTENSIONS_DIR": "cache/torch_extensions",
    "NUMBA_CACHE_DIR": "cache/numba",
    "WARP_CACHE_PATH": "cache/warp",
    "MPLCONFIGDIR": "cache/matplotlib",
    "XDG_CACHE_HOME": "cache/xdg",
}
# Names the Python of an environment that is not the installer's: a developer's checkout.
PYTHON_VARIABLE = "IM3D_PYTHON"
SSH_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")


def backend_python(home: Path) -> Path:
    """The Python that runs the backend; it need not exist.

    It is `IM3D_PYTHON`, that of the installation in use under `home`, or that of the development environment there.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        current = json.loads((home / "backend" / "current.json").read_text(encoding="utf-8"))
        return home / str(current["python"])
    except (OSError, ValueError, KeyError, TypeError):
        return development_python(home) or home / "backend" / "not-installed"


def development_python(folder: Path) -> Path | None:
    """The Python of an environment that im3d is installed in: the folder itself, or the .venv of a checkout."""
    for environment in (folder, folder / ".venv"):
        python = python_in(environment)
        program = python.with_name("im3d.exe" if sys.platform == "win32" else "im3d")
        if (environment / "pyvenv.cfg").is_file() and python.exists() and program.exists():
            return python
    return None


def python_in(environment: Path) -> Path:
    """The Python of an environment, whether it is there or not."""
    return environment.joinpath(*(("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")))


def backend_command(home: Path, blender: str = "") -> list[str]:
    """The command that starts the backend installed under `home`.

    -P and -s keep the current folder and the user's own site-packages out of it.

    Args:
        blender: Blender's executable, for previews; "" lets the backend look for one.
    """
    command = [str(backend_python(home)), "-P", "-s", "-m", "im3d.cli", "serve"]
    return [*command, "--blender", blender] if blender else command


def child_environment(home: Path, token: str = "") -> dict[str, str]:
    """This process's environment without Blender's Python, with all caches under `home`.

    Args:
        token: The user's access token of the model hub, for a command that downloads; "" leaves it to his own login.
    """
    environment = environment_without_python()
    environment["IM3D_HOME"] = str(home)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONUTF8"] = "1"
    if token.strip():
        environment["HF_TOKEN"] = token.strip()
    # The user's own `hf auth login` stays where it is, while the caches move.
    own = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    environment.setdefault("HF_TOKEN_PATH", str(Path(environment.get("HF_HOME") or own) / "token"))
    for name, folder in CACHES.items():
        environment.setdefault(name, str(home / folder))
    return environment


def remote_command(host: str, serve: str = "--remote") -> list[str]:
    """The command that starts the backend on another machine through the user's own ssh.

    Args:
        host: As ssh knows it, e.g. "me@workstation"; may carry options of ssh, before or after it.
        serve: "--remote" serves jobs, "--files" moves files once.
    """
    try:
        words = shlex.split(host.replace("\\", "/") if os.name == "nt" else host)
    except ValueError:  # a quote that is not closed: ssh says that there is no such host
        words = [host]
    return ["ssh", *SSH_OPTIONS, *words, "--", f"im3d serve {serve}"]
