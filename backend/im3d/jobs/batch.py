"""The rows of `im3d batch`: requests made of a table's lines (`im3d.shared.tables`), and how they ended.

Every row has a job folder of its own, named after what it asks for, so that the same table run again goes on where it
stopped, also when rows were added, moved or mended in between.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from im3d.core.storage import translate_os_errors, write_json
from im3d.errors import Im3dError, InputError
from im3d.generators.choose import find_family
from im3d.jobs.job import Request
from im3d.jobs.runner import explain
from im3d.settings import override_notes, parse_overrides
from im3d.shared.tables import Line, TableError, is_ours, read_lines, write_results as write_table

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
    try:
        lines = read_lines(path)
    except TableError as error:
        raise InputError(error.message, error.hint) from error
    folder = path if path.is_dir() else path.parent
    return [_row(number, line, folder, defaults) for number, line in enumerate(lines, start=1)]


def check_results(out: Path) -> None:
    """Raises InputError when a file that is not ours lies where the results go."""
    names = set(RESULT_COLUMNS)
    try:
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))
        records = isinstance(found, list) and all(isinstance(r, dict) and set(r) == names for r in found)
    except FileNotFoundError:
        records = True
    except (OSError, ValueError, RecursionError):
        records = False
    for name, ours in (("results.csv", is_ours(out / "results.csv", RESULT_COLUMNS)), ("results.json", records)):
        if not ours:
            raise InputError(f"{out / name} is not from a batch.", "Choose another folder for the results.")


def write_results(rows: list[Row], out: Path) -> Path:
    """Writes `results.csv` and `results.json` into `out`, each in one piece, and returns where the first is now.

    Raises:
        InputError, DiskError: They cannot be written.
    """
    records = [_record(row, out) for row in rows]
    with translate_os_errors(out / "results.csv"):
        table = write_table(out / "results.csv", RESULT_COLUMNS, records)
    write_json(out / "results.json", [dict(zip(RESULT_COLUMNS, record, strict=True)) for record in records])
    return table


def _record(row: Row, out: Path) -> Sequence[object]:
    """In the order of `RESULT_COLUMNS`."""
    job = str(out / row.folder) if row.request is not None else ""
    message = str(row.error) if row.error is not None else ""
    return row.number, row.name, row.status, round(row.seconds, 1), row.mesh, job, row.collection, message


def _row(number: int, line: Line, folder: Path, defaults: Defaults) -> Row:
    row = Row(number, line.name, "", None, line.cells["collection"])
    try:
        if line.error is not None:
            raise InputError(line.error.message, line.error.hint)
        request = _request(line, folder, defaults)
        row.request, row.name, row.folder = request, request.name, folder_name(request)
    except Exception as error:
        row.status, row.error = "failed", explain(error, None)
    return row


def _request(line: Line, folder: Path, defaults: Defaults) -> Request:
    fields = line.request(
        folder,
        preset=defaults.preset,
        generator=defaults.generator,
        seed=defaults.seed,
        height_m=defaults.height_m,
    )
    if fields["generator"] != "auto":
        find_family(fields["generator"])  # a wrong name is an error of its row
    request = Request.from_partial(fields)
    settings = parse_overrides(request.settings, defaults.overrides)
    return dataclasses.replace(request, settings=settings, warnings=override_notes(defaults.overrides))


def folder_name(request: Request) -> str:
    """Name of a request's job folder: readable, and different whenever any part of the request differs."""
    words = re.sub(r"[^a-z0-9]+", "-", request.name.lower()).strip("-")[:40]
    digest = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest
