"""The add-on's modules that need no Blender: requests, tables, placements, models, tasks, diagnostics."""

from __future__ import annotations

import ast
import dataclasses
import json
import locale
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extension.im3d_blender.client.tasks import SILENCE_S, Task, TaskState
from extension.im3d_blender.core import exif
from extension.im3d_blender.core.batch_table import read_table, resume, write_results
from extension.im3d_blender.core.finished_jobs import date_text
from extension.im3d_blender.core.job_request import GENERATORS, PRESETS, VIEWS_GENERATOR, RequestError, make_request
from extension.im3d_blender.core.model_facts import automatic, licence_of, read_models
from extension.im3d_blender.core.placement import Placement, read_placement
from extension.im3d_blender.state import diagnostics
from PIL import Image, ImageOps

from im3d.generators import choose
from im3d.jobs.job import FORMAT, Request
from im3d.models import catalog, memory_modes
from im3d.models.catalog import models
from im3d.shared import names


class TestRequest:
    def test_the_backend_reads_it(self, tmp_path: Path) -> None:
        (tmp_path / "cup.png").write_bytes(b"")
        made = make_request(image=str(tmp_path / "cup.png"), seed=3, height=0.1, faces=500, settings="fit.iterations=9")
        request = Request.from_json({"format": FORMAT, **made})
        assert (request.name, request.image) == ("cup", str(tmp_path / "cup.png"))
        assert (request.settings.mesh.faces, request.settings.fit.iterations) == (500, 9)
        assert (request.seed, request.height_m, request.elevation_deg) == (3, 0.1, None)

    def test_presets_and_generators_are_the_backends(self) -> None:
        assert {VIEWS_GENERATOR, *(name for name, *_ in GENERATORS)} == set(choose.generator_names())
        assert [name for name, *_ in PRESETS] == list(names.PRESETS)
        with pytest.raises(RequestError, match="There is no preset best"):
            make_request(prompt="x", preset="best")

    def test_a_picture_stands_for_its_folder_of_views(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(b"")
        assert make_request(views=str(tmp_path / "b.png"))["views"] == str(tmp_path)
        (tmp_path / "b.png").unlink()
        with pytest.raises(RequestError, match="two pictures or more"):
            make_request(views=str(tmp_path))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({}, "nothing to start from"),
            ({"prompt": "   "}, "nothing to start from"),
            ({"prompt": "x", "height": float("nan")}, "height"),
            ({"prompt": "x", "height": 0.0}, "height"),
            ({"prompt": "x", "seed": 2**31}, "seed"),
            ({"prompt": "x", "elevation": names.MAX_ELEVATION_DEG + 1}, "elevation"),
            ({"prompt": "x", "faces": 3}, "faces"),
            ({"prompt": "x", "generator": "files"}, "needs orbit views"),
            ({"prompt": "x", "settings": "iterations=3"}, "not a setting"),
            ({"prompt": "x", "mask": "m.png"}, "mask needs the image"),
            ({"image": __file__}, "not a picture"),
        ],
    )
    def test_what_is_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(RequestError, match=words):
            make_request(**arguments)

    def test_a_drawn_seed_is_another_one_each_time(self) -> None:
        assert len({make_request(prompt="x", seed=None)["seed"] for _ in range(4)}) > 1

    def test_the_name_is_the_one_that_the_backend_would_give(self, tmp_path: Path) -> None:
        for prompt in (" two  spaces ", "a " + "very " * 20 + "old chest"):
            given = make_request(prompt=prompt)
            assert given["name"] == Request.from_partial({"prompt": prompt}).name
        assert given["name"] == "a very very very very very very very"

    def test_what_macos_puts_beside_a_picture_is_no_view(self, tmp_path: Path) -> None:
        for name in ("a.png", "._a.png"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(RequestError, match="two pictures or more"):
            make_request(views=str(tmp_path))


def test_the_panel_has_a_label_for_every_stage() -> None:
    tree = ast.parse((Path(__file__).parents[3] / "im3d_blender" / "ui" / "queue.py").read_text(encoding="utf-8"))
    tables = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "STAGES"]
    assert list(ast.literal_eval(tables[0].value)) == ["send", *names.STAGES, "fetch"]


class TestTable:
    def test_spreadsheets_of_other_countries(self, tmp_path: Path) -> None:
        table = tmp_path / "props.csv"
        table.write_text("\ufeffPrompt;Name;Seed;Height\na chest, old;Chest;4;0,5\n;;;\n", encoding="utf-8")
        (row,) = read_table(table)
        assert row.request is not None
        assert (row.request["prompt"], row.name, row.request["seed"]) == ("a chest, old", "Chest", 4)
        assert row.request["height_m"] == 0.5

    def test_other_files_are_not_taken_for_results(self, tmp_path: Path) -> None:
        table = tmp_path / "props.csv"
        table.write_text("prompt\na\n")
        with pytest.raises(RequestError, match="not a table of results"):
            write_results(read_table(table), table)
        assert table.read_text() == "prompt\na\n"

    def test_what_was_written_beside_a_held_table_counts(self, tmp_path: Path) -> None:
        table, results = tmp_path / "props.csv", tmp_path / "results.csv"
        table.write_text("prompt\na\n")
        (row,) = read_table(table)
        write_results([row], results)
        row.status, row.job = "done", str(tmp_path)
        (tmp_path / "result.json").write_text("{}")
        write_results([row], results.with_suffix(".new.csv"))
        (again,) = read_table(table)
        resume([again], results)
        assert again.status == "done"

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / os.fsdecode(b"m_\xfc.png")).write_bytes(b"")
        (row,) = read_table(tmp_path)
        assert row.name == "m_\ufffd"

    def test_a_folder_is_a_row_for_each_picture(self, tmp_path: Path) -> None:
        for name in ("b.jpg", "a.png", "notes.txt"):
            (tmp_path / name).write_bytes(b"")
        assert [row.name for row in read_table(tmp_path)] == ["a", "b"]

    @pytest.mark.parametrize("text", ["", "colour\nred\n", "name\nx\n", "prompt,colour\na,b\n", "prompt\n"])
    def test_tables_that_are_none(self, text: str, tmp_path: Path) -> None:
        table = tmp_path / "props.csv"
        table.write_text(text)
        with pytest.raises(RequestError):
            read_table(table)

    def test_a_second_run_makes_what_is_missing_and_what_was_changed(self, tmp_path: Path) -> None:
        table, results = tmp_path / "props.csv", tmp_path / "results.csv"
        table.write_text("prompt\na\nb\nc\n")
        rows = read_table(table)
        for row in rows:
            row.job = str(tmp_path / row.name)
            (tmp_path / row.name).mkdir()
            (tmp_path / row.name / "result.json").write_text("{}")
        rows[0].status = rows[1].status = rows[2].status = "done"
        rows[1].status = "failed"
        write_results(rows, results)
        (tmp_path / "c" / "result.json").unlink()
        table.write_text("prompt\na\nb\nc\nd\n")
        again = read_table(table)
        resume(again, results)
        assert [row.status for row in again] == ["done", "waiting", "waiting", "waiting"]
        table.write_text("prompt,seed\na,2\n")
        (changed,) = read_table(table)
        resume([changed], results)
        assert changed.status == "waiting"


class TestPlacement:
    def test_round_trip(self, tmp_path: Path) -> None:
        placement = Placement(
            blend="/a.blend", document="1", scene="S", collection="Props", location=(1.0, 2.0, 3.0), lods=True
        )
        placement.write(tmp_path / "new")
        assert read_placement(tmp_path / "new") == placement

    def test_none_and_damaged(self, tmp_path: Path) -> None:
        assert read_placement(tmp_path) is None
        for text in ("", "[]", '{"location": [1]}', '{"location": null}'):
            (tmp_path / "placement.json").write_text(text)
            assert read_placement(tmp_path) is None

    @pytest.mark.parametrize(
        ("blend", "document", "mine"),
        [("", "1", True), ("/a.blend", "2", True), ("", "2", False), ("/b.blend", "2", False)],
    )
    def test_whose_file_is_open(self, blend: str, document: str, mine: bool) -> None:
        """Saving a file names it, opening another one changes the document: an unsaved file is known by the latter."""
        assert Placement(blend="/a.blend", document="1").is_for(blend, document) is mine
        assert Placement(blend="", document="1").is_for("", "2") is False


class TestModels:
    def test_they_are_the_backends(self, tmp_path: Path) -> None:
        facts = {m.name: m for m in read_models(tmp_path)}
        assert list(facts) == list(models())
        for name, model in models().items():
            assert (facts[name].licence, facts[name].commercial, facts[name].gated, facts[name].page) == (
                model.licence, model.commercial, model.gated, model.page,
            )  # fmt: skip

    def test_installed_when_every_recorded_file_has_its_size(self, tmp_path: Path) -> None:
        folder = tmp_path / "models" / "isnet"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"1234")
        for size, expected in ((4, True), (5, False)):
            (folder / "installed.json").write_text(json.dumps({"files": [{"path": "weights", "bytes": size}]}))
            assert next(m for m in read_models(tmp_path) if m.name == "isnet").installed is expected

    def test_the_licence_of_what_was_made(self, tmp_path: Path) -> None:
        facts = read_models(tmp_path)
        assert "sv3d-nc-community" in licence_of("sv3d_p", facts)
        assert licence_of("mini", facts) == models()["mini"].licence
        assert licence_of("files", facts) == ""

    @pytest.mark.parametrize("gpu", [False, True])
    @pytest.mark.parametrize("elevation_known", [False, True])
    def test_automatic_says_what_the_backend_will_take(
        self, gpu: bool, elevation_known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory_modes, "free_gigabytes", lambda device: 24.0)
        for there in ((), ("sv3d_p",), ("sv3d_u",), ("sv3d_p", "sv3d_u")):
            facts = [dataclasses.replace(m, installed=m.name in (*there, "mini")) for m in read_models(tmp_path)]
            monkeypatch.setattr(catalog, "installed", lambda name, there=there: name if name in there else None)
            device = torch.device("cuda" if gpu else "cpu")
            taken = choose.choose_generator("auto", device, elevation_known).name
            assert automatic(facts, gpu, elevation_known) == taken, (there, gpu, elevation_known)

    def test_sizes_fit_on_a_button(self, tmp_path: Path) -> None:
        sizes = {m.name: m.size for m in read_models(tmp_path)}
        assert [sizes[name] for name in ("isnet", "sv3d_p", "flux2_klein")] == ["177 MB", "9.4 GB", "16 GB"]


class TestTask:
    def run(self, code: str, **options: Any) -> tuple[Task, TaskState]:
        task = Task("x", [sys.executable, "-c", code], os.environ, **options)
        deadline = time.monotonic() + 30
        while not task.poll().done and time.monotonic() < deadline:
            time.sleep(0.01)
        return task, task.state

    def test_progress_and_result(self) -> None:
        code = "import sys; sys.stderr.write('\\rx:  42%|####'); print('noise'); print('{\"status\": \"done\"}')"
        _, state = self.run(code)
        assert (state.fraction, state.error, state.result) == (0.42, "", {"status": "done"})

    def test_an_error_is_its_own_sentence(self) -> None:
        said = {"message": "No space.", "hint": "Free some.", "remedy": "token sv3d_p"}
        _, state = self.run(f"import sys; print({json.dumps(said)!r}); sys.exit(1)")
        assert (state.error, state.remedy) == ("No space. Free some.", "token sv3d_p")

    def test_a_crash_is_its_last_line(self) -> None:
        _, state = self.run("import sys; sys.exit('it broke')")
        assert state.error == "it broke"

    def test_a_program_that_is_not_there(self) -> None:
        state = Task("x", ["/nonexistent/python"], {}).poll()
        assert state.done
        assert "could not be started" in state.error

    def test_silence_ends_it(self) -> None:
        hours = iter([0.0, 0.0, SILENCE_S + 1, SILENCE_S + 1])
        task = Task("x", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ, clock=lambda: next(hours))
        task.poll()
        state = task.poll()
        assert state.done
        assert "did not answer" in state.error
        assert task._process is not None
        assert task._process.poll() is not None

    def test_cancelled(self) -> None:
        task = Task("x", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
        task.cancel()
        assert task.poll().done
        assert task._process is not None
        assert task._process.poll() is not None


class TestDiagnostics:
    def test_nothing_private_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diagnostics.getpass, "getuser", lambda: "mallory")
        monkeypatch.setattr(diagnostics.platform, "node", lambda: "workstation7")
        text = "\n".join(
            [
                "Mallory on WORKSTATION7 wrote to mallory@example.org",
                "open /home/mallory/secret/a.png failed",
                "open '/home/mallory/our plans/draft 7.png' failed",
                "open /home/mallory/his project/b.png failed",
                r"open C:\Users\mallory\Pictures\grandma.png failed",
                'File "/home/mallory/im3d/backend/im3d/stages.py", line 12',
                "prompt: a Rusty Chest; token hf_abcdefghijkl",
                "rustic",
            ]
        )
        cleaned = diagnostics.redacted(text, ["a rusty chest", "rust", "/home/mallory/his project/b.png"])
        for private in (
            "mallory",
            "workstation7",
            "secret",
            "grandma",
            "rusty",
            "hf_abc",
            "example.org",
            "Users",
            "plans",
            "draft 7",
            "project",
        ):
            assert private.lower() not in cleaned.lower()
        assert "stages.py" in cleaned
        assert "line 12" in cleaned
        assert "rustic" in cleaned  # only whole words are taken out


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_stand_as_pillow_stands_them(number: int, suffix: str, tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8], pixels[8:, 24:] = (250, 0, 0), (0, 0, 250)
    pixels[:8, 24:] = 250
    tags = Image.Exif()
    tags[0x0112] = number
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels).save(path, exif=tags, quality=100, subsampling=0)
    assert exif.orientation(path) == number
    with Image.open(path) as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
        mine = exif.upright(np.asarray(photo.convert("RGB")), number)
    assert np.array_equal(mine, expected)


def test_pictures_that_say_nothing_are_upright(tmp_path: Path) -> None:
    for name, content in (("cut.jpg", b"\xff\xd8\xff\xe1\0\x10Exif\0\0II*\0"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        assert exif.orientation(tmp_path / name) == 1
    assert exif.orientation(tmp_path / "none.jpg") == 1


def test_dates_are_written_as_the_user_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = locale.setlocale(locale.LC_TIME)
    for name in ("LC_ALL", "LC_TIME", "LANG"):
        monkeypatch.setenv(name, "C")
    at = time.mktime((2026, 3, 4, 15, 6, 0, 0, 0, -1))
    assert date_text(at) == "2026-03-04 15:06"  # not the American 03/04/26 of the C locale
    german: list[str] = []

    def setlocale(category: int, name: str | None = None) -> str:
        german.append(name or "")
        return "de_DE.UTF-8" if name == "" else "C"

    monkeypatch.setattr(locale, "setlocale", setlocale)
    monkeypatch.setattr(time, "strftime", lambda form, when: form)
    assert date_text(at) == "%x %H:%M"
    assert german[-1] == "C"  # Blender's own is put back
    monkeypatch.undo()
    assert locale.setlocale(locale.LC_TIME) == before


def test_random_seeds_have_six_digits_at_most() -> None:
    seeds = {make_request(prompt="x")["seed"] for _ in range(200)}
    assert len(seeds) > 100
    assert max(seeds) < 1_000_000
    assert make_request(prompt="x", seed=2**31 - 1)["seed"] == 2**31 - 1
