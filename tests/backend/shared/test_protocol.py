"""The messages between Blender and the backend."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from im3d.shared import protocol
from im3d.shared.pipes import read_messages


def test_every_message_survives_a_line() -> None:
    sent = protocol.message("submit", "job-1", request={"prompt": "ein Krug, 3 µm\n\u2028"}, job="/jobs/1")
    line = protocol.encode(sent)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert protocol.decode(line) == sent


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"INFO: loading model", "not JSON"),
        (b'{"v": 2, "id": "a", "type": "res', "not JSON"),
        (b"[1, 2]", "not an object"),
        (b'{"v": 1, "id": "", "type": "ping"}', "protocol version 1"),
        (b'{"id": "", "type": "ping"}', "protocol version None"),
        (b'{"v": 2, "id": "", "type": "selfdestruct"}', "unknown message type"),
        (b'{"v": 2, "id": "", "type": ["ping"]}', "unknown message type"),
        (b'{"v": 2, "id": 3, "type": "ping"}', "without an id"),
        (b'{"v": 2, "id": "a", "type": "error", "code": "x"}', "without message, hint, remedy, log"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"v": ' + b"1" * 5000 + b"}", "not JSON"),
        (b" " * (protocol.MAX_LINE + 1), "a line of"),
    ],
)
def test_garbage_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(protocol.ProtocolError, match=why):
        protocol.decode(line)


def test_a_message_cannot_be_built_incomplete() -> None:
    with pytest.raises(protocol.ProtocolError, match="without path"):
        protocol.message("result", "a")


def test_not_a_number_never_reaches_the_wire() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        protocol.encode(
            protocol.message("progress", "a", stage="fit", step=1, steps=2, fraction=0.5, eta_s=float("nan"))
        )


def test_the_module_needs_the_standard_library_only() -> None:
    # -I -S: no site-packages; the file is loaded by its path, as Blender's side does.
    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('p', sys.argv[1]);"
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); print(m.VERSION)"
    )
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code, protocol.__file__], capture_output=True, check=True)
    assert json.loads(out.stdout) == protocol.VERSION


def test_a_file_name_that_is_not_text_survives() -> None:
    name = os.fsdecode(b"/jobs/caf\xe9.png")
    sent = protocol.message("preview", "a", stage="fit", path=name)
    assert protocol.decode(protocol.encode(sent))["path"] == name


def test_reading_goes_on_after_any_line_and_its_end_is_told() -> None:
    ping = protocol.encode(protocol.message("ping", "a"))
    long = b"x" * (protocol.MAX_LINE + 1) + ping  # what follows within a line is not a message
    taken: list[str] = []
    refused: list[protocol.ProtocolError] = []
    ended = threading.Event()

    def take(item: protocol.Message) -> None:
        if item["id"] == "defect":
            raise KeyError("job")
        taken.append(item["id"])

    defect = protocol.encode(protocol.message("ping", "defect"))
    lines = io.BytesIO(b"[" * 200_000 + b"\n" + long + defect + ping + ping.rstrip())
    read_messages(lines, take, refused.append, ended.set).join(30)
    assert taken == ["a", "a"]
    assert len(refused) == 3
    assert str(refused[2]) == "KeyError: 'job'"
    assert ended.is_set()


def test_the_end_is_told_although_nobody_takes_refusals() -> None:
    ended = threading.Event()

    def refuse(_: str) -> None:
        raise OSError("stderr is gone")

    read_messages(io.BytesIO(b"a\nb\n"), lambda _: None, refuse, ended.set).join(30)
    assert ended.is_set()
