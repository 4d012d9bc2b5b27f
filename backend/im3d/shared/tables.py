"""Tables of jobs as people and spreadsheets make them: the one reader of `im3d batch` and of Blender's batch.

A table is a CSV file with a header, or a folder. Columns: one of `prompt`, `image`, `views`; and if wanted `name`,
`height` (metres), `seed`, `preset`, `generator`, `collection` (for Blender). Paths are relative to the table. A folder
means one job for each picture in it and for each folder of views; the folders of jobs are none.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import replace_file
from .names import QUEUED_FILE, REQUEST_FILE, is_picture

SOURCES = ("prompt", "image", "views")
COLUMNS = (*SOURCES, "name", "height", "seed", "preset", "generator", "collection")
# Files by which the folder of a job is recognised.
JOB_FILES = (REQUEST_FILE, QUEUED_FILE)
# A line behind the table: inside a quote that is never closed it is not found again.
_END = "\ue000end"


class TableError(ValueError):
    """A table that cannot be used.

    Attributes:
        message: What is wrong, a sentence.
        hint: What to do about it, a sentence.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} {hint}")
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        cells: The text of every column, "" where it is empty.
        seed: The seed, None where none is given.
        height: The height in metres, None where none is given.
        error: Why the line cannot be used, or None.
    """

    cells: dict[str, str] = field(default_factory=lambda: dict.fromkeys(COLUMNS, ""))
    seed: int | None = None
    height: float | None = None
    error: TableError | None = None

    @property
    def name(self) -> str:
        """What to call the line as long as nothing better is known."""
        return next((self.cells[c] for c in ("name", "prompt", "image", "views") if self.cells[c]), "")

    def request(self, folder: Path, *, preset: str, generator: str, seed: int, height_m: float) -> dict[str, Any]:
        """The fields of a request (see `protocol`) that the line gives, and these defaults where it gives none.

        Args:
            folder: The folder that paths in the table are relative to.
        """
        paths = {name: str((folder / self.cells[name]).absolute()) for name in ("image", "views") if self.cells[name]}
        texts = {name: self.cells[name] for name in ("prompt", "name") if self.cells[name]}
        return {
            **paths,
            **texts,
            "preset": self.cells["preset"] or preset,
            "generator": self.cells["generator"] or generator,
            "seed": seed if self.seed is None else self.seed,
            "height_m": height_m if self.height is None else self.height,
        }


def read_lines(path: Path) -> list[Line]:
    """The lines of a table; those that are wrong say so.

    Args:
        path: CSV file or folder.

    Raises:
        TableError: No such file, no table, an unknown column, or nothing in it.
    """
    try:
        lines = _folder_lines(path) if path.is_dir() else _csv_lines(path)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    if not lines:
        columns = ", ".join(SOURCES)
        raise TableError(
            f"{path} holds nothing to make.", f"Use pictures, folders of views, or a CSV with one of: {columns}."
        )
    return lines


def _folder_lines(folder: Path) -> list[Line]:
    if any((folder / name).exists() for name in JOB_FILES):
        raise TableError(f"{folder} is the folder of a job.", "Choose a folder of pictures.")
    lines = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            line = _views_line(entry)
            lines += [] if line is None else [line]
        elif is_picture(entry.name):
            lines.append(_line({"image": entry.name}))
    return lines


def _views_line(folder: Path) -> Line | None:
    """The line of a folder of views; None for other folders."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        why = TableError(f"{folder} cannot be read: {error.strerror}.", "Check its permissions.")
        return Line({**dict.fromkeys(COLUMNS, ""), "views": folder.name}, error=why)
    if set(JOB_FILES) & set(names) or sum(map(is_picture, names)) < 2:
        return None
    return _line({"views": folder.name})


def _csv_lines(path: Path) -> list[Line]:
    if path.exists() and not path.is_file():
        raise TableError(f"{path} is a pipe or a device, not a file.", "Give a CSV file or a folder.")
    try:
        # Spreadsheets write a byte order mark, and semicolons where the comma parts decimals.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TableError(f"{path} does not exist.", "Check the path.") from None
    except ValueError:
        raise TableError(f"{path} is not a table in UTF-8.", "Save it as CSV with the encoding UTF-8.") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = _rows(path.name, text, delimiter)
    names = _columns(path.name, next(rows, []))
    lines = []
    for cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        found = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}
        lost = [cell for name, cell in zip(names, cells, strict=False) if not name] + cells[len(names) :]
        lines.append(_line(found, delimiter == ";", any(cell.strip() for cell in lost)))
    return lines


def _rows(name: str, text: str, delimiter: str) -> Iterator[list[str]]:
    """The rows of a CSV text.

    Raises:
        TableError: A quote is never closed.
    """
    reader = csv.reader(io.StringIO(f"{text}\n{_END}\n"), delimiter=delimiter)
    first, rows = 1, []
    try:
        for row in reader:
            rows.append(row)
            if row == [_END]:
                yield from rows[:-1]
                return
            if not any(_END in cell for cell in row):
                first = reader.line_num + 1
    except csv.Error:
        pass
    raise TableError(f"{name}, line {first}: a quote is opened and never closed.", "Close it, or write two for a mark.")


def _columns(name: str, header: list[str]) -> list[str]:
    """The columns by their places; those without a name, which spreadsheets add, have "".

    Raises:
        TableError: One is unknown or there twice, or none says what to make.
    """
    names = [cell.strip().lower() for cell in header]
    wrong = next((n for i, n in enumerate(names) if n and (n not in COLUMNS or n in names[:i])), None)
    if wrong is not None:
        twice = " twice" if wrong in COLUMNS else ""
        raise TableError(f"{name} has the column {wrong!r}{twice}.", f"Columns are: {', '.join(COLUMNS)}.")
    if not set(names) & set(SOURCES):
        raise TableError(f"{name} has no column that says what to make.", f"Add one of: {', '.join(SOURCES)}.")
    return names


def _line(found: dict[str, str], decimal_comma: bool = False, lost: bool = False) -> Line:
    """A line of some cells; `lost`: others have no column."""
    cells = {**dict.fromkeys(COLUMNS, ""), **found}
    try:
        if lost:
            raise TableError(
                "The line has more cells than the table has columns.", "Quote cells that hold the separator."
            )
        height = cells["height"].replace(",", ".") if decimal_comma else cells["height"]
        return Line(cells, _whole("seed", cells["seed"]), _number("height", height))
    except TableError as error:
        return Line(cells, error=error)


def _number(name: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise TableError(f"The {name} {text[:40]!r} is not a number.", "Use a point for decimals.") from None


def _whole(name: str, text: str) -> int | None:
    """Also of 3.0, as spreadsheets write numbers of a column with gaps."""
    with contextlib.suppress(ValueError):
        return int(text) if text else None
    number = _number(name, text)
    if number is None or not number.is_integer():
        raise TableError(f"The {name} {text[:40]!r} is not a whole number.", "Write it without decimals.")
    return int(number)


def is_ours(results: Path, columns: Sequence[str]) -> bool:
    """Whether a table of results may be written there: nothing is there yet, or an earlier one."""
    if not results.is_file():
        return not results.exists()
    try:
        with open(results, encoding="utf-8-sig", errors="replace") as file:
            head = file.readline(1000).strip()
    except OSError:
        return False
    return head in ("", ",".join(columns))


def write_results(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a table of results in one piece, and returns where it is.

    A spreadsheet that holds the file open keeps it from being replaced (on Windows). The table is then written beside
    it, as NAME.new.csv, until the file is free again.

    Raises:
        OSError: Neither can be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    # File names that are not UTF-8 are shown by their bytes.
    data = text.getvalue().encode("utf-8", "backslashreplace")
    beside = path.with_suffix(".new.csv")
    try:
        replace_file(path, data)
    except PermissionError:
        if not is_ours(beside, columns):
            raise
        replace_file(beside, data)
        return beside
    if beside.exists() and is_ours(beside, columns):
        with contextlib.suppress(OSError):
            beside.unlink()
    return path
