"""Files that are replaced at once, so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` that takes its place when the block ends well and vanishes when it does not.

    It keeps the suffix, for writers that choose the format by it.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file, or makes it.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    with replacing(path) as part:
        part.write_bytes(data)
