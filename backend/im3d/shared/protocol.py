"""The messages between Blender and the backend: one JSON object a line, over the backend's stdin and stdout.

Standard library only: both sides import it.

Every message carries `v` (protocol version), `id` (the job or request it belongs to, "" for none) and `type`.

To the backend
    submit {request, job}       run a job in the folder `job`: the request as in request.json, where every field but the
                                source may be left out, and `settings` holds changes of the preset
    resume {job}                continue the job in this folder
    cancel {}                   stop the job `id`; it stays resumable; a second cancel ends its process at once
    free_memory {}              drop the models that are kept for the next job
    ping {}                     answered by pong, also while a job runs
    shutdown {}                 end after the running stage is stopped

From the backend
    hello {product, version, device}        once, when it is ready
    progress {stage, step, steps, fraction, eta_s}   fraction: of the whole job, 0 to 1, falling only when a worker died
                                and a new one takes the job up; eta_s: seconds left of it, null while unknown
    warning {message}           what the user should know about the result, one or two sentences; sent again to whoever
                                resumes the job
    preview {stage, path}                   a picture of the state, overwritten by the next one; from a remote backend
                                            also `data`, the PNG in base64, "" when it is large
    result {path}                           the finished job's result.json
    error {code, message, hint, remedy, log} the job `id` ended; codes and remedies are those of `im3d.errors`
    pong {}

Large data travels as files: on one machine as paths, to and from another one by `file_stream`, with paths relative to
the folder of all clients there. End of file on either side ends the other.
"""

from __future__ import annotations

import json
from typing import Any

VERSION = 2
PRODUCT = "im3d"
# A longer line is not one of ours; reading on would let a broken peer fill the memory.
MAX_LINE = 1 << 20

COMMANDS: dict[str, tuple[str, ...]] = {
    "submit": ("request", "job"),
    "resume": ("job",),
    "cancel": (),
    "free_memory": (),
    "ping": (),
    "shutdown": (),
}
EVENTS: dict[str, tuple[str, ...]] = {
    "hello": ("product", "version", "device"),
    "progress": ("stage", "step", "steps", "fraction", "eta_s"),
    "warning": ("message",),
    "preview": ("stage", "path"),
    "result": ("path",),
    "error": ("code", "message", "hint", "remedy", "log"),
    "pong": (),
}

Message = dict[str, Any]


class ProtocolError(ValueError):
    """A line that is not a message of this protocol.

    Attributes:
        version: The protocol version of the other side, where the line is a message of another one.
    """

    def __init__(self, reason: str, version: int | None = None) -> None:
        super().__init__(reason)
        self.version = version


def message(type_: str, id_: str = "", **content: Any) -> Message:
    """A message of a known type.

    Raises:
        ProtocolError: Unknown type, or a field of the table above is missing; more fields are allowed.
    """
    checked = {"v": VERSION, "id": id_, "type": type_, **content}
    _check(checked)
    return checked


def encode(message: Message) -> bytes:
    """One line with its line feed.

    Raises:
        ValueError: A number is not finite.
    """
    # In ASCII: file names that are not UTF-8 are text that UTF-8 refuses.
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises:
        ProtocolError: Not JSON, too long, of another protocol version, of unknown type, or with missing fields.
    """
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a line of {len(line)} bytes")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(data, dict):
        raise ProtocolError(f"not an object: {line[:80]!r}")
    version = data.get("v")
    if version != VERSION:
        known = version if isinstance(version, int) else None
        raise ProtocolError(f"protocol version {version!r}, this side speaks {VERSION}", known)
    _check(data)
    return data


def _check(data: Message) -> None:
    type_ = data.get("type")
    fields = {**COMMANDS, **EVENTS}.get(type_) if isinstance(type_, str) else None
    if fields is None:
        raise ProtocolError(f"unknown message type {type_!r}")
    if not isinstance(data.get("id"), str):
        raise ProtocolError(f"{type_} without an id")
    missing = [name for name in fields if name not in data]
    if missing:
        raise ProtocolError(f"{type_} without {', '.join(missing)}")
