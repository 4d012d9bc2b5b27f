"""Tables as spreadsheets, scripts and folders bring them; both `im3d batch` and Blender read with this one reader."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from im3d.shared.tables import TableError, is_ours, read_lines, write_results


def lines(tmp_path: Path, text: str | bytes) -> list[tuple[str, int | None, float | None, str]]:
    """Name, seed, height and fault of every line."""
    table = tmp_path / "t.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = read_lines(table)
    return [(line.name, line.seed, line.height, line.error.message if line.error else "") for line in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt,seed,height\na jug,1.0,0.5\n", [("a jug", 1, 0.5, "")]),
        ("\ufeffPrompt;Name ;Height;Seed\na;A;0,5;7\n", [("A", 7, 0.5, "")]),
        ("prompt\theight\na jug, red\t2\n", [("a jug, red", None, 2.0, "")]),
        ("prompt,name,\na,A,\nb,B,,,\n", [("A", None, None, ""), ("B", None, None, "")]),
        ("prompt\r\na\r\n\r\n", [("a", None, None, "")]),
        ('prompt,name\n"a\nb ""c""",X\n', [("X", None, None, "")]),
        ('prompt\n"a jug"', [("a jug", None, None, "")]),
        ("prompt\na\u2028b\n", [("a\u2028b", None, None, "")]),
        ("prompt,\na,lost\n", [("a", None, None, "The line has more cells than the table has columns.")]),
        ("prompt\na, red\nb\n",
         [("a", None, None, "The line has more cells than the table has columns."), ("b", None, None, "")]),
        ("prompt,seed\na,1.5\n", [("a", None, None, "The seed '1.5' is not a whole number.")]),
        ("prompt,seed\na,inf\n", [("a", None, None, "The seed 'inf' is not a whole number.")]),
        ("prompt,seed\na,9223372036854775807\n", [("a", 2**63 - 1, None, "")]),
        ("prompt,height\na,tall\n", [("a", None, None, "The height 'tall' is not a number.")]),
    ],
)  # fmt: skip
def test_lines(tmp_path: Path, text: str, expected: list[tuple[str, int | None, float | None, str]]) -> None:
    assert lines(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('prompt,name\na,A\nb,"never closed\nc,C\n', "t.csv, line 3: a quote is opened and never closed."),
        ('prompt,name\na,"never closed\n' + "b,B\n" * 40000, "t.csv, line 2: a quote is opened and never closed."),
        ('"prompt\na\n', "t.csv, line 1: a quote is opened"),
        ("prompt,name,Name\na,A,A\n", "has the column 'name' twice"),
        ("prompt,colour\nx,red\n", "has the column 'colour'"),
        ("name,seed\nx,1\n", "has no column that says what to make"),
        ("", "has no column"),
        ("prompt\n\n", "holds nothing to make"),
        (b"\xff\xfe\x00p", "is not a table in UTF-8"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(TableError, match=words):
        lines(tmp_path, text)


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(TableError, match="a pipe"):
        read_lines(tmp_path / "t.csv")


def test_a_folder_of_pictures_and_jobs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", os.fsdecode(b"m_\xfc.png")):
        (tmp_path / name).touch()
    for folder in ("orbit", "job", "queued", "one"):
        (tmp_path / folder / "views").mkdir(parents=True)
        for k in range(1 if folder == "one" else 3):
            (tmp_path / folder / f"view_{k}.png").touch()
            (tmp_path / folder / f"._view_{k}.png").touch()  # as macOS puts beside each file
    (tmp_path / "job" / "request.json").touch()
    (tmp_path / "queued" / "queued.json").touch()
    found = [(line.cells["image"], line.cells["views"]) for line in read_lines(tmp_path)]
    assert found == [("a.JPG", ""), ("b.png", ""), (os.fsdecode(b"m_\xfc.png"), ""), ("", "orbit")]
    with pytest.raises(TableError, match="is the folder of a job"):
        read_lines(tmp_path / "job")


class TestResults:
    def test_a_table_that_is_held_open_is_written_beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, beside = tmp_path / "results.csv", tmp_path / "results.new.csv"
        assert write_results(path, ("row", "name"), [(1, "a")]) == path
        replace = os.replace

        def held(source: Path, target: Path) -> None:
            if target == path:
                raise PermissionError(13, "in use by another process")
            replace(source, target)

        monkeypatch.setattr(os, "replace", held)
        assert write_results(path, ("row", "name"), [(1, "b"), (2, "m_\udcfc")]) == beside
        with open(beside, newline="", encoding="utf-8") as file:
            assert list(csv.reader(file)) == [["row", "name"], ["1", "b"], ["2", "m_\\udcfc"]]
        assert path.read_text().splitlines()[1] == "1,a"
        monkeypatch.undo()
        assert write_results(path, ("row", "name"), [(1, "c")]) == path
        assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]

    def test_the_users_own_table_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "results.csv"
        assert is_ours(path, ("row", "name"))
        path.write_text("")
        assert is_ours(path, ("row", "name"))
        write_results(path, ("row", "name"), [])
        assert is_ours(path, ("row", "name"))
        assert not is_ours(path, ("row", "key"))
        path.write_text("mine")
        assert not is_ours(path, ("row", "name"))
        assert not is_ours(tmp_path, ("row", "name"))
