"""A file that is locked as long as this process lives: other Blenders see by it which jobs have a living session."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import IO

from ...backend.im3d.shared.locks import try_lock


class SessionLock:
    """This session's lock, in a folder that all sessions share.

    Args:
        folder: Made when missing.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex
        self._path = folder / f"{self.name}.lock"
        self._file: IO[bytes] | None = open(self._path, "ab")  # noqa: SIM115 - held open for as long as the session
        try_lock(self._file)

    def release(self) -> None:
        """Ends the session: the lock is free and its file is removed."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the session of that name still runs; its file is removed when it does not."""
    path = folder / f"{name}.lock"
    try:
        with open(path, "r+b") as file:
            if not try_lock(file):
                return True
    except FileNotFoundError:
        return False
    except OSError:
        return True  # locked in a way that even opening is refused
    path.unlink(missing_ok=True)
    return False
