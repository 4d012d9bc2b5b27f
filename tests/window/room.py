"""A room: a Debian of its own with its Blender, in which the add-on is opened in a real window. Needs root.

    root = ready("sid", folder)             # made at the first call: about two minutes and 2 GB
    status = run(root, shell, binds, log)   # in the room; nothing of it outlives the call

A room is a folder. What runs in it has mounts, processes and a network of its own (`unshare`), so that nothing is left
mounted or running whatever happens, and nothing reaches the network.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

# Debian's suites with a Blender that the project supports and its version.
SUITES = {"trixie": "4.3", "sid": "5.2"}
PACKAGES = ["blender", "python3-numpy", "python3-requests", "xvfb", "libgl1-mesa-dri", "libegl1", "libegl-mesa0",
            "libglx-mesa0", "libgl1", "fonts-dejavu-core"]  # fmt: skip
# What Blender's own scripts import there and its package does not ask for.
MORE = {"sid": ["python3-cattr"]}
SOURCES = Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d")
BUILD_LIMIT_S = 1500.0


class NoRoomError(Exception):
    """The room cannot be made here; the text says why."""


def default_folder() -> Path:
    """Where rooms lie: `IM3D_ROOMS`, or the user's cache."""
    chosen = os.environ.get("IM3D_ROOMS")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(chosen) if chosen else cache / "im3d" / "rooms"


def ready(suite: str, folder: Path, log: Path) -> Path:
    """The root folder of the suite's room; made when it is not there yet.

    Args:
        folder: That of the rooms.
        log: Receives what making it printed.

    Raises:
        NoRoomError: No root, no Debian mirror, no network, no space.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NoRoomError("a room needs root")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        raise NoRoomError("this machine does not let root mount anything")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / suite / "usr/bin/blender").exists():
            _make(suite, folder / suite, log)
    return folder / suite


def mirror(sources: Iterable[str]) -> str:
    """The Debian archive that this machine's own packages come from, read from the texts of apt's sources; or ""."""
    for text in sources:
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        for address in re.findall(r"https?://\S+", "\n".join(lines)):
            if address.rstrip("/").endswith("/debian"):
                return address.rstrip("/")
    return ""


def run(root: Path, shell: str, binds: Mapping[Path, str], log: Path, limit_s: float, network: bool = False) -> int:
    """Runs a shell's script in a room.

    Args:
        binds: Folders of this machine that are there too, each with its place in the room.

    Returns:
        Its exit status; 124 when it was ended after `limit_s`.
    """
    places = {Path("/dev"): "/dev", **binds}
    mounts = [f"mkdir -p '{root}{place}'; mount --rbind '{path}' '{root}{place}'" for path, place in places.items()]
    mounts.append(f"mount -t proc proc '{root}/proc'")
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    # Whoever ends this process ends what runs in the room.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        *([] if network else ["--net"]),
    ]
    command += ["sh", "-ec", "\n".join([*mounts, f"exec chroot '{root}' sh -ec \"$SHELL_SCRIPT\""])]
    with open(log, "ab") as out:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                  timeout=limit_s, env={**variables, "SHELL_SCRIPT": shell})  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124
    return done.returncode


def _make(suite: str, root: Path, log: Path) -> None:
    """Beside its place first, so that half a room is never taken for one."""
    sources = [path for source in SOURCES for path in ([source] if source.is_file() else sorted(source.glob("*.*")))]
    archive = mirror(path.read_text() for path in sources if path.suffix in (".list", ".sources"))
    if not archive:
        raise NoRoomError("this machine's apt sources name no Debian archive")
    print(f"{suite}: making the room, about two minutes", flush=True)
    if shutil.which("debootstrap") is None:
        _step("apt-get update -q && apt-get install -y -q debootstrap", log, "debootstrap cannot be installed")
    part = root.with_name(f"{suite}.part")
    shutil.rmtree(part, ignore_errors=True)
    bootstrap = f"debootstrap --variant=minbase --include=ca-certificates {suite} '{part}' {archive}"
    _step(f"unshare --mount {bootstrap}", log, f"Debian {suite} cannot be fetched from {archive}")
    packages = " ".join([*PACKAGES, *MORE.get(suite, [])])
    # The description of a suite that moves may be older on a mirror than its own date allows.
    apt = "apt-get -q -o Acquire::Check-Valid-Until=false"
    install = f"{apt} update && {apt} install -y --no-install-recommends {packages} && apt-get clean"
    if run(part, install, {}, log, BUILD_LIMIT_S, network=True):
        raise NoRoomError(f"Blender cannot be installed in Debian {suite}: {_last_line(log)}")
    part.rename(root)


def _step(command: str, log: Path, reason: str) -> None:
    with open(log, "ab") as out:
        try:
            done = subprocess.run(["sh", "-ec", command], stdout=out, stderr=subprocess.STDOUT, timeout=BUILD_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise NoRoomError(f"{reason}: it took too long") from None
    if done.returncode:
        raise NoRoomError(f"{reason}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
