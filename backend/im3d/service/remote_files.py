"""Files of clients on other machines: all of them lie under one folder and are moved as `file_stream` describes."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from im3d.core.storage import translate_os_errors
from im3d.errors import Im3dError, InputError
from im3d.shared.file_stream import (
    DamagedError,
    EndedEarlyError,
    Entry,
    read_line,
    receive_all,
    send_all,
    write_line,
)
from im3d.shared.protocol import Message

# A larger picture is not sent while a job runs; base64 of this stays under the protocol's longest line.
LARGEST_PREVIEW = 600 << 10
LONGEST_NAME = 255
# A transfer that moves nothing for so long has lost its client.
SILENCE_S = 300.0


class RemoteFiles:
    """The folder that a remote client's paths are relative to.

    Args:
        root: The folder; nothing outside it is read or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def located(self, command: Message) -> Message:
        """A submit or resume with this machine's paths.

        Raises:
            InputError: A path leads out of the folder.
        """
        found = {**command, "job": str(self.inside(command["job"]))}
        if isinstance(command.get("request"), dict):
            request = dict(command["request"])
            for name in ("image", "views", "mask"):
                if request.get(name):
                    request[name] = str(self.inside(request[name]))
            if request.get("blend"):
                raise InputError("A remote job cannot save a .blend.", "Leave it out; Blender imports the mesh.")
            found["request"] = request
        return found

    def relative(self, event: Message) -> Message:
        """An event as the client knows it: paths relative to the folder, and a preview with its picture."""
        changed = dict(event)
        if event["type"] == "preview":
            changed["data"] = _picture(Path(str(event["path"])))
        for name in ("path", "log"):
            value = changed.get(name)
            if isinstance(value, str) and value and Path(value).is_relative_to(self.root):
                changed[name] = Path(value).relative_to(self.root).as_posix()
        return changed

    def inside(self, path: Any) -> Path:
        """The file that a client means.

        Raises:
            InputError: The path leads out of the folder, or no file can have it.
        """
        shown = str(path)[:80]
        if (
            not isinstance(path, str)
            or "\0" in path
            or any(len(os.fsencode(n)) > LONGEST_NAME for n in path.split("/"))
        ):
            raise InputError(f"{shown!r} is no name for a file.", "Rename it, and keep it short.")
        relative = PurePosixPath(path)
        foreign = os.name == "nt" and (PureWindowsPath(path).drive or "\\" in path or ":" in path)
        if not foreign and not relative.is_absolute() and ".." not in relative.parts and relative.parts:
            target = (self.root / relative).resolve()
            if target != self.root and target.is_relative_to(self.root):
                return target
        raise InputError(f"The path {shown} is not one of this session.", "Use paths relative to it.")


def serve_files(root: Path, requests: IO[bytes], answers: IO[bytes]) -> int:
    """One transfer, as the server; returns the exit status. Whatever goes wrong is the answer."""
    last = [time.monotonic()]
    finished = threading.Event()

    def moved(_: int) -> None:
        last[0] = time.monotonic()

    def watch() -> None:
        while time.monotonic() - last[0] < SILENCE_S:
            if finished.wait(1.0):
                return
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    files = RemoteFiles(root)
    try:
        request = read_line(requests)
        if "put" in request:
            entries = [Entry(**entry) for entry in request["put"]]
            targets = [files.inside(entry.path) for entry in entries]
            with translate_os_errors(targets[0].parent if targets else root):
                receive_all((requests, answers), list(zip(targets, entries, strict=True)), moved)
            write_line(answers, done=True)
        else:
            sources = [(files.inside(path), path) for path in request["get"]]
            found = [Entry.of(source, path) if source.is_file() else None for source, path in sources]
            write_line(answers, files=[entry and entry.to_json() for entry in found])
            wanted = [(source, e) for (source, _), e in zip(sources, found, strict=True) if e is not None]
            send_all((requests, answers), wanted, moved)
    except EndedEarlyError:
        return 1
    except DamagedError as error:
        return _refuse(answers, {"code": "damaged", "message": f"{error}.", "hint": "Send it again.", "remedy": ""})
    except Im3dError as error:
        return _refuse(answers, error.to_json())
    except Exception as error:
        what = "The files cannot be moved"
        return _refuse(answers, InputError(f"{what}: {type(error).__name__}: {error}.", "Check them.").to_json())
    finally:
        finished.set()
    return 0


def _refuse(answers: IO[bytes], error: dict[str, str]) -> int:
    with contextlib.suppress(EndedEarlyError):
        write_line(answers, error=error)
    return 1


def _picture(path: Path) -> str:
    """A picture in base64, "" where there is none or it is large."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError):
        return ""
    return base64.b64encode(data).decode() if len(data) <= LARGEST_PREVIEW else ""
