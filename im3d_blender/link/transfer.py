"""Files to and from a backend on another machine, over the same pipe as the messages, a piece at a time."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import protocol

# Base64 of this stays under the longest line with room to spare.
PIECE = 512 << 10
SOURCES = ("image", "views", "mask")
# What a finished job brings home; without the first two it has not come.
RESULTS = ("result.json", "mesh.glb", "splats.ply", "preview.png", "turntable.webp", "log.txt")
NEEDED = RESULTS[:2]


class Upload:
    """The files that a job starts from, on their way.

    Args:
        job_id: The job's id, which is its folder on the other side.
        request: With paths of this machine.

    Attributes:
        request: The same with paths on the other side.

    Raises:
        OSError: A file cannot be read.
    """

    def __init__(self, job_id: str, request: dict[str, Any]) -> None:
        self.request = dict(request)
        self._files: list[tuple[Path, str]] = []
        for name in SOURCES:
            source = request.get(name)
            if source:
                self.request[name] = self._add(Path(source), f"{job_id}/input/{name}")
        self._messages = self._pieces()

    def next_message(self) -> dict[str, Any] | None:
        """The next piece, None after the last."""
        return next(self._messages, None)

    def _add(self, source: Path, target: str) -> str:
        """Notes a file, or the files of a folder, and returns its path on the other side."""
        if source.is_dir():
            self._files += [(p, f"{target}/{p.name}") for p in sorted(source.iterdir()) if p.is_file()]
            return target
        path = f"{target}{source.suffix}"
        self._files.append((source, path))
        return path

    def _pieces(self) -> Iterator[dict[str, Any]]:
        for local, path in self._files:
            with open(local, "rb") as file:
                data = file.read(PIECE)
                while True:
                    following = file.read(PIECE)
                    text = base64.b64encode(data).decode()
                    yield protocol.message("put", path=path, data=text, last=not following)
                    if not following:
                        break
                    data = following


class Download:
    """A finished job's files, on their way home.

    Args:
        job_id: The job's id, which is its folder on the other side.
        folder: Where they go.
    """

    def __init__(self, job_id: str, folder: Path) -> None:
        self._prefix = f"{job_id}/"
        self._folder = folder
        self._expected = {f"{job_id}/{name}" for name in RESULTS}
        self.missing: list[str] = []

    def requests(self) -> list[dict[str, Any]]:
        return [protocol.message("get", path=path) for path in sorted(self._expected)]

    def take(self, message: dict[str, Any]) -> bool:
        """Stores a piece; True when nothing more is expected.

        Raises:
            OSError: The file cannot be written.
        """
        path = str(message["path"])
        if path not in self._expected:
            return not self._expected
        name = path.removeprefix(self._prefix)
        if message["data"] is None:
            if name in NEEDED:
                self.missing.append(name)
            self._expected.discard(path)
        elif store_piece(self._folder, name, str(message["data"]), bool(message["last"])):
            self._expected.discard(path)
        return not self._expected


def store_piece(folder: Path, name: str, data: str, last: bool) -> bool:
    """Appends a piece of a file; the file is there after the last piece, which returns True.

    Raises:
        OSError: It cannot be written.
        ValueError: Not base64.
    """
    part = folder / f"{name}.part"
    with open(part, "ab") as file:
        file.write(base64.b64decode(data, validate=True))
    if last:
        os.replace(part, folder / name)
    return last
