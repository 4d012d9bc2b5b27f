"""Tables of jobs: a CSV file or a folder of pictures in, a CSV of results out. No bpy here.

Columns: one of `prompt`, `image`, `views`; and if wanted `name`, `height` (metres), `seed`, `preset`, `generator`,
`collection`. Paths are relative to the table. The columns are those of the command line's `im3d batch`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .job_request import PICTURES, RequestError, make_request

COLUMNS = ("prompt", "image", "views", "name", "height", "seed", "preset", "generator", "collection")
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
    """The rows of a CSV file, or one for each picture of a folder. Wrong lines come as failed rows.

    Args:
        preset: For lines that name none.

    Raises:
        RequestError: No such file, not a table, a column that nobody knows, or nothing in it.
    """
    if path.is_dir():
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        lines = [{"image": p.name} for p in pictures]
        folder = path
    else:
        lines, folder = _lines(path), path.parent
    if not lines:
        raise RequestError(f"{path} holds nothing to make.")
    return [_row(number, line, folder, preset) for number, line in enumerate(lines, start=1)]


def resume(rows: list[Row], results: Path) -> None:
    """Takes over what an earlier run finished, as its results say; its job folders must still hold it."""
    try:
        with open(results, newline="", encoding="utf-8") as file:
            earlier = {line["key"]: line for line in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return
    for row in rows:
        known = earlier.get(row.key, {})
        if known.get("status") == "done" and (Path(known["job"]) / "result.json").is_file():
            row.status, row.job = "done", known["job"]


def write_results(rows: list[Row], path: Path) -> None:
    """Writes the table of results in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(RESULT_COLUMNS)
        writer.writerows([r.number, r.key, r.name, r.status, r.job, r.message] for r in rows)
    os.replace(part, path)


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        # Spreadsheets write a byte order mark, and semicolons where the comma parts decimals.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RequestError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is not a table in UTF-8.") from error
    head = text.partition("\n")[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not set(names) & {"prompt", "image", "views"}:
        wrong = f"the column {unknown[0]!r}" if unknown else "no column prompt, image or views"
        raise RequestError(f"{path.name} has {wrong}; columns are: {', '.join(COLUMNS)}.")
    reader.fieldnames = names
    lines = [line for line in reader if any((value or "").strip() for key, value in line.items() if key)]
    if delimiter == ";":
        for line in lines:
            line["height"] = (line.get("height") or "").replace(",", ".")
    return lines


def _row(number: int, line: dict[str, Any], folder: Path, preset: str) -> Row:
    cells = {name: (line.get(name) or "").strip() for name in COLUMNS}
    key = hashlib.sha256(json.dumps([cells, preset, str(folder)]).encode()).hexdigest()[:16]
    row = Row(number, key, cells["name"], None, cells["collection"])
    try:
        if None in line:
            raise RequestError("The line has more cells than the table has columns.")
        row.request = make_request(
            prompt=cells["prompt"],
            image=str(folder / cells["image"]) if cells["image"] else "",
            views=str(folder / cells["views"]) if cells["views"] else "",
            name=cells["name"],
            generator=cells["generator"] or "auto",
            preset=cells["preset"] or preset,
            seed=_number(int, "seed", cells["seed"] or "0"),
            height=_number(float, "height", cells["height"] or "1"),
        )
        row.name = row.request["name"]
    except RequestError as error:
        row.status, row.message = "failed", str(error)
    return row


def _number(kind: Any, name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise RequestError(f"The {name} {text!r} is not a number.") from None
