"""Writing files so that a reader never meets half of one, and so that disk trouble is explained."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from im3d.errors import DiskError, InputError

# A file system that refuses larger files is met with the same remedy as a full one.
DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals about `path` into sentences.

    Raises:
        DiskError: The disk is full or failed.
        InputError: The path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise DiskError(
                f"The disk is full, or refuses larger files: {path} could not be written.",
                "Free some space, then run im3d resume on the job.",
            ) from error
        if error.errno in _REFUSED:
            raise InputError(f"{path} cannot be written: permission denied.", "Choose another folder.") from error
        if error.errno in _NOT_A_FOLDER:
            raise InputError(f"{path} is in the way or not a folder.", "Choose another folder.") from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    The temporary name keeps the suffix, for writers that choose the format by it.

    Raises:
        DiskError: The disk is full.
        InputError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with explained(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` at once, durably."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Replaces `path` by readable JSON; NaN and infinity are refused (ValueError)."""
    write_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def make_folder(path: Path) -> None:
    """Creates `path` and its parents and proves that it can be written.

    Raises:
        InputError: It cannot be made or written.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
