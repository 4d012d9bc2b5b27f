"""Tables of jobs: what `im3d batch` reads and writes.

A table is a CSV file with a header, or a folder. Columns: one of `prompt`, `image`, `views`, and if wanted `name`,
`height` (metres), `seed`, `preset`, `generator`, `collection` (for Blender). Paths are relative to the table. A folder
means one job for each picture in it and for each folder of views.

Every row has a job folder of its own, named after what it asks for, so that the same table run again goes on where it
stopped, also when rows were added, moved or mended in between.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from im3d.errors import Im3dError, InputError
from im3d.images import SUFFIXES
from im3d.jobs import Request
from im3d.settings import GENERATORS, parse_overrides
from im3d.storage import write_bytes

SOURCES = ("prompt", "image", "views")
COLUMNS = (*SOURCES, "name", "height", "seed", "preset", "generator", "collection")
RESULT_COLUMNS = ("row", "name", "status", "seconds", "mesh", "job", "collection", "message")


@dataclass(frozen=True)
class Defaults:
    """What rows get that do not say otherwise.

    Attributes:
        preset: Name of a preset.
        seed: Seed.
        height_m: Height in metres.
        generator: "auto" or a generator's name.
        overrides: "section.name=value" texts, for all rows.
    """

    preset: str = "standard"
    seed: int = 0
    height_m: float = 1.0
    generator: str = "auto"
    overrides: tuple[str, ...] = ()


@dataclass
class Row:
    """One line of the table.

    Attributes:
        number: From 1, without the header.
        name: Of the object, as far as it is known.
        folder: Name of its job folder.
        request: What to make, None when the line is wrong.
        collection: Passed on to the results.
        status: "waiting", "done", "failed" or "cancelled".
        seconds: That the job took.
        mesh: Path of the GLB, "" before it is there.
        error: Why it failed.
    """

    number: int
    name: str
    folder: str
    request: Request | None
    collection: str = ""
    status: str = "waiting"
    seconds: float = 0.0
    mesh: str = ""
    error: Im3dError | None = None


def read_table(path: Path, defaults: Defaults) -> list[Row]:
    """The rows of a table; wrong lines come as failed rows.

    Raises:
        InputError: No such file, no table, an unknown column, or nothing in it.
    """
    lines = _folder_lines(path) if path.is_dir() else _csv_lines(path)
    if not lines:
        raise InputError(f"{path} holds nothing to make.", f"Use pictures, folders of views, or a CSV with {COLUMNS}.")
    folder = path if path.is_dir() else path.parent
    return [_row(number, line, folder, defaults) for number, line in enumerate(lines, start=1)]


def write_results(rows: list[Row], out: Path) -> None:
    """Writes `results.csv` and `results.json` into `out`, each in one piece."""
    records = [_record(row, out) for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, RESULT_COLUMNS)
    writer.writeheader()
    writer.writerows(records)
    write_bytes(out / "results.csv", text.getvalue().encode())
    write_bytes(out / "results.json", (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode())


def _record(row: Row, out: Path) -> dict[str, Any]:
    return {
        "row": row.number,
        "name": row.name,
        "status": row.status,
        "seconds": round(row.seconds, 1),
        "mesh": row.mesh,
        "job": str(out / row.folder) if row.request is not None else "",
        "collection": row.collection,
        "message": str(row.error) if row.error is not None else "",
    }


def _folder_lines(folder: Path) -> list[dict[str | None, str]]:
    lines: list[dict[str | None, str]] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and sum(p.suffix.lower() in SUFFIXES for p in entry.iterdir()) > 1:
            lines.append({"views": entry.name})
        elif entry.suffix.lower() in SUFFIXES:
            lines.append({"image": entry.name})
    return lines


def _csv_lines(path: Path) -> list[dict[str | None, Any]]:
    try:
        # Spreadsheets write a byte order mark, and semicolons where the comma parts decimals.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a table in UTF-8.", "Save it as CSV with the encoding UTF-8.") from error
    head = text.partition("\n")[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise InputError(f"{path.name} has the column {unknown[0]!r}.", f"Columns are: {', '.join(COLUMNS)}.")
    if not set(names) & set(SOURCES):
        raise InputError(f"{path.name} has no column that says what to make.", f"Add one of: {', '.join(SOURCES)}.")
    reader.fieldnames = names
    lines = [line for line in reader if any((value or "").strip() for name, value in line.items() if name)]
    if delimiter == ";":
        for line in lines:
            line["height"] = (line.get("height") or "").replace(",", ".")
    return lines


def _row(number: int, line: dict[str | None, Any], folder: Path, defaults: Defaults) -> Row:
    cells = {name: (line.get(name) or "").strip() for name in COLUMNS}
    row = Row(
        number, cells["name"] or cells["prompt"] or cells["image"] or cells["views"], "", None, cells["collection"]
    )
    try:
        if None in line:
            raise InputError(
                "The line has more cells than the table has columns.", "Quote cells that hold the separator."
            )
        request = _request(cells, folder, defaults)
        row.request, row.name, row.folder = request, request.name, folder_name(request)
    except InputError as error:
        row.status, row.error = "failed", error
    return row


def _request(cells: dict[str, str], folder: Path, defaults: Defaults) -> Request:
    generator = cells["generator"] or defaults.generator
    if generator not in GENERATORS:
        raise InputError(f"There is no generator {generator}.", f"Choose one of: {', '.join(GENERATORS)}.")
    paths = {name: str((folder / cells[name]).absolute()) if cells[name] else None for name in ("image", "views")}
    request = Request.from_partial(
        {
            **paths,
            "prompt": cells["prompt"],
            "name": cells["name"] or None,
            "preset": cells["preset"] or defaults.preset,
            "generator": generator,
            "seed": _number(int, "seed", cells["seed"], defaults.seed),
            "height_m": _number(float, "height", cells["height"], defaults.height_m),
        }
    )
    return dataclasses.replace(request, settings=parse_overrides(request.settings, defaults.overrides))


def _number(kind: Any, name: str, text: str, default: float) -> Any:
    try:
        return kind(text) if text else default
    except ValueError:
        raise InputError(f"The {name} {text!r} is not a number.", "Use a point for decimals.") from None


def folder_name(request: Request) -> str:
    """Name of a request's job folder: readable, and another one whenever anything that is asked for changes."""
    words = re.sub(r"[^a-z0-9]+", "-", request.name.lower()).strip("-")[:40]
    digest = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest
