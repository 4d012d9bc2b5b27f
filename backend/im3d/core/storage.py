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
from im3d.shared import files

# A file system that refuses larger files is met with the same remedy as a full one.
DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP}
# Windows says "invalid" of a name with characters that it does not allow.
_NO_NAME = {errno.ENAMETOOLONG, errno.EINVAL}
# What systems put into folders by themselves.
_LITTER = {"thumbs.db", "desktop.ini"}


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
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
                "Free some space, then continue the job.",
                "resume",
            ) from error
        if error.errno in _REFUSED:
            raise InputError(f"{path} cannot be written: permission denied.", "Choose another folder.") from error
        if error.errno in _NOT_A_FOLDER:
            raise InputError(f"{path} is in the way or not a folder.", "Choose another folder.") from error
        if error.errno in _NO_NAME:
            raise InputError(
                f"{path} is no name for a file here: {error.strerror}.", "Choose a shorter one."
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `im3d.shared.files.replacing`, with errors that say what to do.

    Raises:
        DiskError: The disk is full.
        InputError: The folder cannot be written.
    """
    with translate_os_errors(path), files.replacing(path) as temporary:
        yield temporary


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` at once, durably."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Replaces `path` by readable JSON; NaN and infinity are refused (ValueError).

    File names that are not UTF-8 survive it: the bytes that Python keeps as lone surrogates become JSON's escapes.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def strangers(folder: Path, own: frozenset[str] = frozenset()) -> list[str]:
    """Names of what others have put into a folder, sorted; none where there is no such folder.

    Args:
        folder: The folder. Hidden files, and what the system puts there, do not count.
        own: Names that are ours.

    Raises:
        InputError: It is not a folder, or cannot be read.
    """
    try:
        with translate_os_errors(folder):
            names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(n for n in names if not n.startswith(".") and n.lower() not in _LITTER and n not in own)


def claim_folder(folder: Path, purpose: str, known: frozenset[str] = frozenset()) -> None:
    """Makes a folder for results, or takes an earlier one of the same purpose; never one with the user's own files.

    Args:
        folder: The folder. A hidden file in it says from now on what it is for.
        purpose: A word, for instance "evaluation".
        known: Names of files that together tell a folder of the same purpose that was made without the mark.

    Raises:
        InputError: It holds files of another kind, or cannot be written.
    """
    mark = folder / f".im3d-{purpose}"
    found = strangers(folder)
    if found and not os.path.exists(mark) and not (known and known <= set(found)):
        raise InputError(
            f"{folder} holds other files than those of this {purpose}: {', '.join(found[:3])}.",
            "Choose a new folder, so that nothing of yours is overwritten.",
        )
    make_folder(folder)
    write_bytes(mark, b"")


def require_file(path: Path, what: str) -> None:
    """Refuses what is no regular file before it is opened: to open a pipe waits for its other end, perhaps for ever.

    Args:
        path: The file, or a link to it. A file that is not there is left to whoever opens it.
        what: What the file should be, with its article, for the sentence.

    Raises:
        InputError: It is a folder, a pipe, a socket or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a pipe or a device, not a file"
        raise InputError(f"{path} is {kind}.", f"Give {what}.")


def make_folder(path: Path) -> None:
    """Creates `path` and its parents and proves that it can be written.

    Raises:
        InputError: It cannot be made or written.
    """
    with translate_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
