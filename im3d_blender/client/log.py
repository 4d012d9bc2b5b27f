"""The log of a process: a file of bounded size."""

from __future__ import annotations

import threading
from pathlib import Path

LOG_BYTES = 4 << 20  # the log is begun anew, and the one before kept, when it reaches this size


class Log:
    """A file of bounded size, with one predecessor. A log that cannot be written never stops anything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        with self._lock:
            try:
                if self._path.exists() and self._path.stat().st_size > LOG_BYTES:
                    self._path.replace(self._path.with_name(self._path.name + ".1"))
                with open(self._path, "ab") as file:
                    file.write(data)
            except OSError:
                pass
