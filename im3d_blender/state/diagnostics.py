"""What a report of a fault needs, and nothing private: no names, no paths, no prompts."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import bpy

    from ..client.queue import QueuedJob
    from .session import Session

LOG_BYTES = 16_000
LOG_LINES = 60
_PATH = re.compile(r"""(?:[A-Za-z]:\\|\\\\|/)(?:[^\s"'<>|:*?]+[/\\])+(?P<last>[^\s"'<>|:*?/\\]*)""")
# In quotes a path may hold spaces.
_QUOTED = re.compile(r"""(?P<quote>["'])(?:[A-Za-z]:\\|\\\\|/)[^"'\n]*?(?P<last>[^"'\n/\\]*)(?P=quote)""")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)[A-Za-z0-9]{8,}")


def collect(context: bpy.types.Context, known: Session | None, job: QueuedJob | None) -> str:
    """The text for the clipboard."""
    import bpy

    from .preferences import get_preferences

    lines = [
        f"Blender {bpy.app.version_string}, Python {platform.python_version()}",
        f"{platform.system()} {platform.release()} {platform.machine()}",
    ]
    preferences = get_preferences(context)
    secrets = [preferences.token.strip(), *host_words(preferences.remote_host)]
    if known is not None:
        hello = known.queue.backend.hello or {}
        lines.append(f"backend {hello.get('version', 'not started')} on {hello.get('device', 'unknown device')}")
        private = ("prompt", "name", "image", "views", "mask")
        secrets += [str(j.request[key]) for j in known.queue.jobs for key in private if j.request.get(key)]
    if job is not None:
        request = job.request
        source = next((key for key in ("views", "image", "prompt") if request.get(key)), "nothing")
        lines.append(
            f"job from {source}, {request.get('generator')}, {request.get('preset')}, seed {request.get('seed')}"
        )
        lines.append(f"{job.state} in stage {job.stage or 'none'}, step {job.step} of {job.steps}")
        if job.failure is not None:
            lines.append(f"{job.failure.code}: {job.failure.message} {job.failure.hint}")
        lines += _tail(job)
    return redacted("\n".join(lines), secrets)


def host_words(host: str) -> list[str]:
    """The names in the host's preference, "user@host" with options of ssh: each also stands alone in a log."""
    return [host.strip(), *re.split(r"[\s@:=,]+", host)]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without paths (a program's name stays), names of user and machine, addresses, keys and `secrets`."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) > 2:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[private]", text, flags=re.IGNORECASE)
    text = _ADDRESS.sub("[address]", _SECRET.sub("[key]", text))
    for pattern in (_QUOTED, _PATH):
        text = pattern.sub(lambda match: f"[path]/{match['last']}" if match["last"].endswith(".py") else "[path]", text)
    for name in {Path.home().name, _user(), platform.node(), os.environ.get("USERDOMAIN", "")}:
        if len(name) > 2 and name.lower() not in ("root", "blender"):
            text = re.sub(rf"\b{re.escape(name)}\b", "[name]", text, flags=re.IGNORECASE)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _tail(job: QueuedJob) -> list[str]:
    from .session import log_of

    try:
        with open(log_of(job), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return ["", "end of the log:", *lines[-LOG_LINES:]]
