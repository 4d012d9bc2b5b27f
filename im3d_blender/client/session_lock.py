"""A file that is locked as long as this process lives: tells other Blenders whose jobs are being taken care of.

The operating system frees the lock when the process ends, however it ends.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import IO


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
        _try_lock(self._file)

    def release(self) -> None:
        """Says that this session is over."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the session of that name still runs; its file is removed when it does not."""
    path = folder / f"{name}.lock"
    try:
        with open(path, "r+b") as file:
            if not _try_lock(file):
                return True
    except FileNotFoundError:
        return False
    except OSError:
        return True  # locked in a way that even opening is refused
    path.unlink(missing_ok=True)
    return False


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
