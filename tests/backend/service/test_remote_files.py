"""Transfers from the server's side: what a client may name, and files that arrive in any number of pieces."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from im3d.errors import InputError
from im3d.service.remote_files import RemoteFiles, serve_files
from im3d.shared import file_stream
from im3d.shared.file_stream import CHUNK, DamagedError, EndedEarlyError, Entry, arrived, receive, send

HASH = "0" * 64


def nothing(_: int) -> None:
    pass


def served(root: Path, *lines: dict[str, Any], data: bytes = b"") -> tuple[int, list[Any], bytes]:
    """Exit status, answers and what follows them of a transfer whose client says all at once."""
    asked = b"".join(json.dumps({"im3d": "files", **line}).encode() + b"\n" for line in lines)
    answers = io.BytesIO()
    status = serve_files(root, io.BytesIO(asked + data), answers)
    answers.seek(0)
    said = []
    while (line := answers.readline()).startswith(b'{"im3d"'):
        said.append(json.loads(line))
    return status, said, line + answers.read()


def test_nothing_is_left_waiting_after_a_transfer(tmp_path: Path) -> None:
    """What ends the process of a transfer that stands still must not end a process that goes on."""
    before = set(threading.enumerate())
    served(tmp_path, {"get": []}, {"have": []})
    for thread in set(threading.enumerate()) - before:
        thread.join(30.0)
        assert not thread.is_alive()


NAMES = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "",
    ".",
    "a\0b",
    "n" * 300,
    f"a/{'é' * 150}/b",
    "link/x",
    "\ud800",
    3,
    None,
]


@pytest.mark.parametrize("path", NAMES)
def test_nothing_outside_the_folder_is_touched(tmp_path: Path, path: Any) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    for lines in ([{"put": [{"path": path, "bytes": 2, "sha256": HASH}]}], [{"get": [path]}, {"have": [0]}]):
        status, (answer,), rest = served(root, *lines, data=b"hi")
        assert (status, answer["error"]["code"], rest) == (1, "bad_input", b"")
    assert [p.name for p in tmp_path.rglob("*")] == ["root", "link"]


@pytest.mark.parametrize("path", ["../x", "a\0b", "n" * 300])
def test_nor_by_a_job(tmp_path: Path, path: str) -> None:
    files = RemoteFiles(tmp_path)
    for asked in ({"job": path}, {"job": "a", "request": {"image": path}}):
        with pytest.raises(InputError):
            files.located(asked)


@pytest.mark.parametrize(
    "line",
    [
        {"put": [{"path": "a", "bytes": -1, "sha256": HASH}]},
        {"put": [{"path": "a", "bytes": 1.5, "sha256": HASH}]},
        {"put": [{"path": "a", "bytes": True, "sha256": HASH}]},
        {"put": [{"path": "a", "bytes": 1, "sha256": "../../x"}]},
        {"put": [{"path": "a", "bytes": 1}]},
        {"put": 3},
        {"get": [["a"]]},
        {"take": []},
    ],
)
def test_nonsense_is_answered(tmp_path: Path, line: dict[str, Any]) -> None:
    status, (answer,), _ = served(tmp_path, line)
    assert (status, answer["error"]["code"]) == (1, "bad_input")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_and_a_file_that_cannot_be_read_are_answered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    put = {"put": [{"path": "file/below", "bytes": 2, "sha256": HASH}]}
    status, said, _ = served(tmp_path, put, data=b"hi")
    assert (status, said[-1]["error"]["code"]) == (1, "bad_input")
    # What is no regular file is not there: to open a pipe would wait for ever.
    status, (answer,), _ = served(tmp_path, {"get": [".", "none"][1:]}, {"have": []})
    assert (status, answer["files"]) == (0, [None])


def test_a_client_that_wants_more_than_there_is_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    for have in ([6], [-1], [0, 0], ["1"], None):
        status, said, rest = served(tmp_path, {"get": ["a"]}, {"have": have})
        assert (status, "error" in said[-1], rest) == (1, True, b"")


@pytest.mark.parametrize("size", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_any_size_arrives_from_any_place(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "target"
    source.write_bytes(bytes(i * 31 % 251 for i in range(997)) * (size // 997 + 1))
    with open(source, "r+b") as file:
        file.truncate(size)
    entry = Entry.of(source, "target")
    stream = io.BytesIO()
    send(source, stream, entry, 0, nothing)
    half = stream.getvalue()[: size // 2]
    if size > 1:
        with pytest.raises(EndedEarlyError):
            receive(io.BytesIO(half), target, entry, 0, nothing)
        assert not target.exists()
    have = arrived(target, entry)
    assert have == len(half)
    stream = io.BytesIO()
    send(source, stream, entry, have, nothing)
    receive(io.BytesIO(stream.getvalue()), target, entry, have, nothing)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert arrived(target, entry) == size


def test_an_older_file_of_that_name_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new content")
    target.write_bytes(b"old content")
    entry = Entry.of(source, "target")
    assert arrived(target, entry) == 0
    with pytest.raises(DamagedError):
        receive(io.BytesIO(b"new c0ntent"), target, entry, 0, nothing)
    assert target.read_bytes() == b"old content"
    assert arrived(target, entry) == 0
    receive(io.BytesIO(b"new content"), target, entry, 0, nothing)
    assert target.read_bytes() == b"new content"


def test_a_file_that_shrinks_while_it_is_sent_never_arrives(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    entry = Entry.of(source, "a")
    source.write_bytes(b"0123")
    with pytest.raises(DamagedError, match="changed"):
        send(source, io.BytesIO(), entry, 2, nothing)


def test_endless_greetings_are_not_read_for_ever() -> None:
    with pytest.raises(EndedEarlyError):
        file_stream.read_line(io.BytesIO(b"welcome\n" * 10_000))
