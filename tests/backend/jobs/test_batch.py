"""`im3d batch`: tables as people make them, failures that cost a row, and going on where it stopped."""

from __future__ import annotations

import csv
import json
import os
import weakref
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import im3d.pipeline
from im3d.cli import main as cli
from im3d.errors import CancelledError, InputError, OutOfMemoryError
from im3d.jobs import batch
from im3d.jobs.batch import Defaults, read_table
from im3d.jobs.job import Job, Request
from im3d.models.cache import MODELS
from im3d.settings import preset_settings

TABLE = """prompt,name,height,seed,preset,collection
a jug,,0.3,7,draft,Props
"a chair, red",Chair,,,,
,,,,,
bad one,,tall,,,
a lamp,Lamp,0.5,1,standard,Lights
"""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that ran, by a pipeline that obeys the prompt."""
    names: list[str] = []

    def run_pipeline(job: Job, listener: Any, cancel: Event, **_: Any) -> dict[str, Any]:
        names.append(job.request.name)
        if job.request.prompt == "too large":
            raise OutOfMemoryError("Too large.", "Use draft.")
        if job.request.prompt == "stop here":
            cancel.set()
            raise CancelledError("Cancelled.")
        (job.folder / "mesh.glb").touch()
        return {"mesh": str(job.folder / "mesh.glb"), "timings_s": {"total": 3.0}}

    monkeypatch.setattr("im3d.pipeline.run_pipeline", run_pipeline)
    return names


def results(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_bad_row_costs_itself(tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.csv").write_text(TABLE)
    arguments = ["batch", str(tmp_path / "table.csv"), "--out", str(tmp_path / "out"), "--height", "2", "--json"]
    assert cli.main(arguments) == InputError.exit_status
    assert ran == ["a jug", "Chair", "Lamp"]
    rows = results(tmp_path / "out")
    assert [(r["row"], r["name"], r["status"], r["collection"]) for r in rows] == [
        ("1", "a jug", "done", "Props"),
        ("2", "Chair", "done", ""),
        ("3", "bad one", "failed", ""),
        ("4", "Lamp", "done", "Lights"),
    ]
    assert rows[2]["message"] == "The height 'tall' is not a number. Use a point for decimals."
    assert all(Path(r["mesh"]).is_file() for r in rows if r["status"] == "done")
    assert json.loads((tmp_path / "out" / "results.json").read_text())[0]["seconds"] == 3.0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["status"], answer["done"], answer["rows"]) == ("failed", 3, 4)
    jug, chair = Job.open(Path(rows[0]["job"])).request, Job.open(Path(rows[1]["job"])).request
    assert (jug.height_m, jug.seed, jug.settings) == (0.3, 7, preset_settings("draft"))
    assert (chair.height_m, chair.seed, chair.prompt) == (2.0, 0, "a chair, red")


def test_failures_and_stops_are_tried_again(tmp_path: Path, ran: list[str]) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "out"
    table.write_text("prompt\na jug\ntoo large\nstop here\na lamp\n")
    assert cli.main(["batch", str(table), "--out", str(out)]) == CancelledError.exit_status
    assert [r["status"] for r in results(out)] == ["done", "failed", "cancelled", "waiting"]
    folders = [r["job"] for r in results(out)]
    # Mended rows are other jobs; untouched ones keep their folders wherever they stand.
    table.write_text("prompt\na lamp\na jug\nsmall enough\n")
    assert cli.main(["batch", str(table), "--out", str(out)]) == 0
    again = results(out)
    assert [r["status"] for r in again] == ["done"] * 3
    assert (again[1]["job"], again[0]["job"]) == (folders[0], folders[3])
    assert again[2]["job"] not in folders


@pytest.mark.parametrize("where", ["run", "create"])
def test_a_defect_costs_its_row(
    where: str, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create, pipeline = Job.create, im3d.pipeline.run_pipeline

    def broken_create(folder: Path, request: Request) -> Job:
        if where == "create" and request.name == "b":
            raise ZeroDivisionError("in create")
        return create(folder, request)

    def broken_run(job: Job, *arguments: Any, **options: Any) -> Any:
        if where == "run" and job.request.name == "b":
            raise ZeroDivisionError("in run")
        return pipeline(job, *arguments, **options)

    monkeypatch.setattr(Job, "create", broken_create)
    monkeypatch.setattr("im3d.pipeline.run_pipeline", broken_run)
    (tmp_path / "t.csv").write_text("prompt\na\nb\nc\n")
    assert cli.main(["batch", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]) == 1
    assert [r["status"] for r in results(tmp_path / "out")] == ["done", "failed", "done"]
    assert f"ZeroDivisionError: in {where}" in results(tmp_path / "out")[1]["message"]
    assert "Traceback" in capsys.readouterr().err


def test_names_that_are_not_utf8(tmp_path: Path, ran: list[str]) -> None:
    name = os.fsdecode(b"m_\xfc.png")
    for picture in ("a.png", name):
        Image.new("RGB", (8, 8)).save(tmp_path / picture)
    # Among the pictures, and a second time: job folders are no rows.
    for _ in range(2):
        assert cli.main(["batch", str(tmp_path), "--out", str(tmp_path), "--generator", "mini"]) == 0
        assert [(r["name"], r["status"]) for r in results(tmp_path)] == [("a", "done"), ("m_\ufffd", "done")]
    request = Job.open(Path(results(tmp_path)[1]["job"])).request
    assert request.image == str(tmp_path / name)


def test_the_users_own_results_are_not_overwritten(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("prompt\na\n")
    for name, mine in (("results.csv", "prompt\nmine\n"), ("results.json", '{"mine": 1}')):
        (tmp_path / name).write_text(mine)
        assert cli.main(["batch", str(tmp_path / "t.csv"), "--out", str(tmp_path)]) == InputError.exit_status
        assert f"{name} is not from a batch" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == mine
        (tmp_path / name).unlink()
    assert ran == []


class Splats:
    """Stands for what a job holds of the GPU."""


def test_models_alone_are_left_of_a_row_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[SimpleNamespace] = []
    held: list[weakref.ref[Splats]] = []
    left: list[list[Splats | None]] = []

    def run_pipeline(job: Job, *_: Any, **__: Any) -> dict[str, Any]:
        splats = Splats()
        held.append(weakref.ref(splats))
        models.append(MODELS.get("orbit", [], 0, SimpleNamespace))
        if job.request.prompt == "too large":
            try:
                raise MemoryError
            except MemoryError as error:
                raise OutOfMemoryError("Too large.", "Use draft.") from error
        return {"mesh": "", "timings_s": {"total": 3.0}}

    monkeypatch.setattr("im3d.pipeline.run_pipeline", run_pipeline)
    monkeypatch.setattr("im3d.cli.batch.give_back_memory", lambda: left.append([ref() for ref in held]))
    (tmp_path / "t.csv").write_text("prompt\na jug\ntoo large\na lamp\n")
    assert cli.main(["batch", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]) == OutOfMemoryError.exit_status
    assert left == [[None], [None, None], [None, None, None]]
    assert results(tmp_path / "out")[1]["message"] == "Too large. Use draft."
    assert models[0] is models[1] is models[2]


def test_a_generator_that_nobody_knows_is_found_before_the_row_runs(tmp_path: Path, ran: list[str]) -> None:
    (tmp_path / "t.csv").write_text("prompt,generator\na jug,sv4d\na lamp,mini\n")
    wrong, right = read_table(tmp_path / "t.csv", Defaults())
    assert str(wrong.error).startswith("There is no generator sv4d.")
    assert right.request is not None
    assert right.request.generator == "mini"


def test_a_defect_before_there_is_a_log_refers_to_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Request) -> str:
        raise ZeroDivisionError("in folder_name")

    monkeypatch.setattr(batch, "folder_name", broken)
    (tmp_path / "t.csv").write_text("prompt\na jug\n")
    (row,) = read_table(tmp_path / "t.csv", Defaults())
    assert row.error is not None
    assert row.error.hint == "Please report it."


def test_spreadsheets_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "orbit").mkdir()
    for k in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "orbit" / f"view_{k}.png")
    (tmp_path / "notes.txt").write_text("x")
    rows = read_table(tmp_path, Defaults(overrides=("mesh.faces=900",)))
    assert [r.name for r in rows] == ["a", "b", "orbit"]
    requests = [r.request for r in rows]
    assert all(r is not None and r.settings.mesh.faces == 900 for r in requests)
    assert requests[2] is not None
    assert requests[2].views == str(tmp_path / "orbit")

    table = tmp_path / "excel.csv"
    table.write_bytes(b"\xef\xbb\xbfImage; Name ;height\r\na.JPG;Krug \xc3\xbc;0,5\r\nnone.png;x;1\r\n")
    good, bad = read_table(table, Defaults())
    assert good.request is not None
    assert (good.request.image, good.name, good.request.height_m) == (str(tmp_path / "a.JPG"), "Krug ü", 0.5)
    assert bad.error is not None
    assert "none.png does not exist" in str(bad.error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"prompt,colour\nx,red\n", "column 'colour'"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_table_is_said_before_anything_runs(
    tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    table = tmp_path / "t.csv"
    if content is not None:
        table.write_bytes(content)
    assert cli.main(["batch", str(table), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert ran == []
    assert not (tmp_path / "out").exists()
