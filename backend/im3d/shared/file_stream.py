"""Files over a pair of pipes: what has arrived is not sent again, and a complete file has the right SHA-256.

One transfer is one process, which the user's own ssh starts on the other machine (`im3d serve --files`); lines of JSON
and the files' bytes go over its stdin and stdout:

    client  {put: [{path, bytes, sha256} …]}             or  {get: [path …]}
    server  {have: [bytes …]}                                {files: [{path, bytes, sha256} or null …]}
    client  the rest of each file, one after the other       {have: [bytes …]}
    server  {done: true}                                     the rest of each file, one after the other

or, instead of any line of the server's, {error: {code, message, hint, remedy}}. A file grows in a part whose name
comes from its path and its hash, so that a part is never continued with other content, and two processes that write
the same one write the same bytes to the same places.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20
LONGEST_LINE = 16 << 20
# Lines that a shell on the other machine may print before the first answer.
GREETING_LINES = 200


class EndedEarlyError(OSError):
    """The other side, or the connection, is gone. What has arrived is kept."""


class DamagedError(OSError):
    """A file has another content than was announced: it changed meanwhile, or was damaged on its way."""


class RefusedError(OSError):
    """The other side answered with an error.

    Attributes:
        code, message, hint, remedy: As in the protocol's `error`.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.code, self.message, self.hint, self.remedy = (
            str(error.get(key, "")) for key in ("code", "message", "hint", "remedy")
        )
        super().__init__(self.message)


@dataclass(frozen=True)
class Entry:
    """A file of a transfer.

    Attributes:
        path: On the server, relative to its folder, with forward slashes.
        bytes: Its size.
        sha256: 64 hexadecimal digits.
    """

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        sound = isinstance(self.path, str) and type(self.bytes) is int and self.bytes >= 0
        if not sound or not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("a file is announced without its path, size or hash")

    @classmethod
    def of(cls, file: Path, path: str) -> Entry:
        """The entry of a file that exists here.

        Raises:
            OSError: It cannot be read, or is no regular file.
        """
        if not file.is_file():
            raise FileNotFoundError(2, "it is missing, or no file", str(file))
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return cls(path, content.tell(), digest)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def arrived(target: Path, entry: Entry) -> int:
    """How many bytes of a file are here: all of them in place, or those in its part.

    Raises:
        OSError: A file cannot be read.
    """
    if target.is_file() and target.stat().st_size == entry.bytes and Entry.of(target, "").sha256 == entry.sha256:
        return entry.bytes
    part = _part(target, entry)
    size = part.stat().st_size if part.is_file() else 0
    # A whole part was not yet checked: its last byte comes again, and with it the check.
    return min(size, max(0, entry.bytes - 1))


def receive(stream: IO[bytes], target: Path, entry: Entry, have: int, moved: Callable[[int], None]) -> None:
    """Reads the rest of a file from a stream; the file is in place when this returns.

    Args:
        have: The result of `arrived`.
        moved: Called with the number of bytes of each chunk.

    Raises:
        EndedEarlyError: The stream ended.
        DamagedError: The hash is wrong; the part is removed.
        OSError: The file cannot be written.
    """
    if have == entry.bytes > 0:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target, entry)
    with open(part, "r+b" if part.exists() else "w+b") as file:
        file.seek(have)
        left = entry.bytes - have
        while left:
            try:
                chunk = stream.read1(min(CHUNK, left))  # type: ignore[attr-defined]
            except (OSError, ValueError) as error:
                raise EndedEarlyError("the connection broke") from error
            if not chunk:
                raise EndedEarlyError("the connection ended in a file")
            file.write(chunk)
            left -= len(chunk)
            moved(len(chunk))
        file.seek(0)
        right = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    if not right:
        with contextlib.suppress(OSError):
            part.unlink()
        raise DamagedError(f"{entry.path} arrived damaged, or changed on its way")
    os.replace(part, target)


def send(file: Path, stream: IO[bytes], entry: Entry, have: int, moved: Callable[[int], None]) -> None:
    """Writes the rest of a file to a stream; see `receive`.

    Raises:
        EndedEarlyError: The other side is gone.
        DamagedError: The file is shorter than it was.
        OSError: It cannot be read.
    """
    left = entry.bytes - have
    with open(file, "rb") as content:
        content.seek(have)
        while left:
            chunk = content.read(min(CHUNK, left))
            if not chunk:
                raise DamagedError(f"{file} changed while it was sent")
            write(stream, chunk)
            left -= len(chunk)
            moved(len(chunk))


def write_line(stream: IO[bytes], **content: Any) -> None:
    """Writes a line.

    Raises:
        EndedEarlyError: The other side is gone.
    """
    write(stream, json.dumps({"im3d": "files", **content}).encode() + b"\n")


def read_line(stream: IO[bytes]) -> dict[str, Any]:
    """The next line of a transfer; what a shell prints before it is skipped.

    Raises:
        EndedEarlyError: There is none.
        RefusedError: It is an error.
    """
    for _ in range(GREETING_LINES):
        try:
            line = stream.readline(LONGEST_LINE)
        except (OSError, ValueError) as error:
            raise EndedEarlyError("the connection broke") from error
        if not line:
            break
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(line)
            if isinstance(content, dict) and content.get("im3d") == "files":
                if isinstance(content.get("error"), dict):
                    raise RefusedError(content["error"])
                return content
    raise EndedEarlyError("the other side did not answer")


Streams = tuple[IO[bytes], IO[bytes]]


def receive_all(streams: Streams, files: Sequence[tuple[Path, Entry]], moved: Callable[[int], None]) -> None:
    """Tells the other side what is here already, then receives the rest of each file.

    Args:
        streams: From the other side, and to it.
        files: With the places where they go.

    Raises:
        EndedEarlyError, DamagedError, OSError: See `receive`.
    """
    have = [arrived(target, entry) for target, entry in files]
    write_line(streams[1], have=have)
    for (target, entry), count in zip(files, have, strict=True):
        receive(streams[0], target, entry, count, moved)


def send_all(streams: Streams, files: Sequence[tuple[Path, Entry]], moved: Callable[[int], None]) -> None:
    """Sends what the other side lacks of each file.

    Raises:
        ValueError: The other side does not answer with a number for each file, from 0 to its size.
        EndedEarlyError, DamagedError, OSError: See `send`.
    """
    have = read_line(streams[0]).get("have")
    if not isinstance(have, list) or len(have) != len(files):
        raise ValueError("the answer has not a number for each file")
    if not all(type(n) is int and 0 <= n <= entry.bytes for n, (_, entry) in zip(have, files, strict=True)):
        raise ValueError("the answer is not within a file")
    for (source, entry), count in zip(files, have, strict=True):
        send(source, streams[1], entry, count, moved)


def write(stream: IO[bytes], data: bytes) -> None:
    """Raises:
    EndedEarlyError: The other side is gone.
    """
    try:
        stream.write(data)
        stream.flush()
    except (OSError, ValueError) as error:  # Windows says "invalid argument" of a broken pipe
        raise EndedEarlyError("the connection broke") from error


def _part(target: Path, entry: Entry) -> Path:
    name = hashlib.sha256(f"{entry.sha256} {target.name}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return target.with_name(f".{name}.part")
