"""The rows of a batch: requests made of a table's lines, and the table of how they ended. No bpy here.

`im3d.shared.tables` defines what a table may look like, for `im3d batch` too.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backend.im3d.shared.tables import Line, TableError, is_ours, read_lines, write_results as write_table
from .job_request import RequestError, make_request

RESULT_COLUMNS = ("row", "key", "name", "status", "job", "message")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        number: From 1, without the header.
        key: Hash of what the line asks for; a line that was changed is another job.
        name: Of the object, as far as it is known.
        request: The job's request, None when the line is wrong.
        collection: Collection that receives the object, "" for the active one.
        status: "waiting", "done", "failed" or "cancelled".
        job: The job folder, "" before it has one.
        message: Why it failed.
    """

    number: int
    key: str
    name: str
    request: dict[str, Any] | None
    collection: str = ""
    status: str = "waiting"
    job: str = ""
    message: str = ""


def read_table(path: Path, preset: str = "standard") -> list[Row]:
    """The rows of a CSV file or of a folder. Wrong lines come as failed rows.

    Args:
        preset: For lines that name none.

    Raises:
        RequestError: No such file, not a table, a unknown column, or nothing in it.
    """
    try:
        lines = read_lines(path)
    except TableError as error:
        raise RequestError(str(error)) from error
    folder = path if path.is_dir() else path.parent
    return [_row(number, line, folder, preset) for number, line in enumerate(lines, start=1)]


def resume(rows: list[Row], results: Path) -> None:
    """Marks the rows that an earlier run finished, by its table of results, if their results are still there."""
    earlier: dict[str, dict[str, str]] = {}
    for file in (results, results.with_suffix(".new.csv")):  # the second where a spreadsheet held the first open
        try:
            with open(file, newline="", encoding="utf-8") as lines:
                earlier |= {line["key"]: line for line in csv.DictReader(lines)}
        except (OSError, ValueError, KeyError, csv.Error):
            continue
    for row in rows:
        known = earlier.get(row.key, {})
        if known.get("status") == "done" and (Path(known["job"]) / "result.json").is_file():
            row.status, row.job = "done", known["job"]


def write_results(rows: list[Row], path: Path) -> Path:
    """Writes the table of results in one piece and returns where it is: beside `path` while that is held open.

    Raises:
        RequestError: The file that lies there is no table of results.
        OSError: It cannot be written.
    """
    if not is_ours(path, RESULT_COLUMNS):
        raise RequestError(f"{path} is not a table of results. Choose another file for the results.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_table(path, RESULT_COLUMNS, [(r.number, r.key, r.name, r.status, r.job, r.message) for r in rows])


def _row(number: int, line: Line, folder: Path, preset: str) -> Row:
    cells = line.cells
    key = hashlib.sha256(json.dumps([cells, preset, str(folder)]).encode()).hexdigest()[:16]
    row = Row(number, key, line.name, None, cells["collection"])
    try:
        if line.error is not None:
            raise RequestError(str(line.error))
        fields = line.request(folder, preset=preset, generator="auto", seed=0, height_m=1.0)
        row.request = make_request(height=fields.pop("height_m"), **fields)
        row.name = row.request["name"]
    except (RequestError, OSError, ValueError) as error:
        row.status, row.message = "failed", str(error)
    return row
