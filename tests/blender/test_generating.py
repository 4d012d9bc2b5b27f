"""From the panel's operators to objects in the scene, in a real Blender, on a backend that answers at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blender_process import ROOT
from PIL import Image

pytestmark = pytest.mark.blender


def test_generate_undo_redo_and_import_again(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("generate_and_undo")
    assert got["ended"] == ["FINISHED"]
    assert (got["objects"], got["undone"], got["redone"]) == (["Kiste"], [], ["Kiste"])
    assert got["height"] == pytest.approx(0.5, rel=1e-3)
    assert got["location"] == pytest.approx([1, 2, 0], abs=1e-4)
    assert got["listed"] == ["Kiste"]
    assert got["again"] == ["Kiste", "Kiste.001"]
    request = got["request"]
    assert (request["prompt"], request["height_m"], request["preset"]) == ("a green box", 0.5, "standard")


def test_bad_arguments_are_refused_before_a_job_starts(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("bad_arguments")
    words = ("nothing to start from", "no file", "height", "not a setting", "elevation", "no folder", "not both")
    for said, word in zip(got["said"], words, strict=True):
        assert word in said
    assert "sv3d_p is not installed" in got["failed"]
    assert "9.4 GB" in got["failed"]
    assert "Not a directory" in got["blocked"]
    assert "Traceback" not in got["blocked"]
    assert (got["jobs"], got["objects"]) == (1, [])


def test_the_object_becomes_an_asset_of_a_library(blender: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    got = blender("asset", tmp_path / "library")
    assert got["marked"] is True
    assert "a green box" in got["description"]
    assert (got["seed"], got["tags"]) == ("11", ["IM-3D", "files"])
    assert (got["author"], got["licence"]) == ("IM-3D (your views)", "")  # the user's own views: nobody else's licence
    assert got["preview"][0] > 0
    assert "Kiste" in got["in_library"]
    counts = sorted(got["levels"].values(), reverse=True)
    assert len(counts) == 3
    assert counts[0] > counts[1] >= counts[2]


def test_a_batch_of_five_with_a_bad_row(blender: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    table = tmp_path / "props.csv"
    table.write_text(
        "prompt,name,height,collection\na,One,0.1,Props\nb,Two,0.2,\nc,Three,tall,\nd,fail,1,\ne,Five,0.5,Props\n"
    )
    got = blender("batch_of_five", table)
    assert got["ended"] == ["FINISHED"]
    assert got["objects"] == ["Five", "One", "Two"]
    assert "Props" in got["collections"]
    assert got["library"] == ["Five.blend", "One.blend", "Two.blend"]
    # The failed row is tried again, the wrong one and the finished ones are not.
    assert (got["made"], got["made_again"]) == (4, 1)
    results = (tmp_path / "props.results.csv").read_text()
    assert results.count(",done,") == 3
    assert results.count(",failed,") == 2


def test_jobs_survive_another_file_and_end_with_the_add_on(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("survives")
    assert (got["running"], got["kept"], got["cancelled"]) == ("running", True, "cancelled")
    # Its object was meant for the file that is no longer open.
    assert (got["other"], got["objects"]) == ("done", [])
    assert "another file" in got["note"]
    assert got["backend"] == "stopped"


def test_a_job_of_an_unsaved_file_arrives_when_that_file_is_open_again(
    blender: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    got = blender("saved_and_reopened", tmp_path / "scene.blend")
    assert got["reopened"] == ["Kiste"]
    # Finished while another file was open, it waits for its own.
    assert (got["elsewhere"], "another file" in got["note"]) == ([], True)
    assert got["back"] == ["Truhe"]
    # Or comes where the user asks for it.
    assert (got["waiting"], got["asked"]) == ([], ["Dose"])


def test_warnings_reach_the_panel_and_the_finished_job(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("warnings_and_clear")
    assert got["shown"] == ["warn", "fail"]  # a job without anything to say is among the finished ones alone
    assert len(got["warnings"]) == 1
    assert got["listed"] == {"warn": got["warnings"][0], "Kiste": ""}
    assert (got["left"], got["folders"]) == (0, 3)
    assert max(got["seeds"]) < 1_000_000


def test_the_examples_of_the_scripting_page(blender: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "scripting.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (tmp_path / "props.csv").write_text(table, encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    got = blender("examples", *re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert got["objects"] == ["Bottle", "Playhouse", "Playhouse.001"]


def test_a_job_whose_folder_is_gone_stays_in_the_list(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("folder_gone")
    assert "holds no job" in got["report"]
    assert got["states"] == ["failed"]


def test_ended_jobs_and_tables_outlive_a_change_of_preferences(
    blender: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    table = tmp_path / "props.csv"
    table.write_text("prompt,name\na,damaged\n")
    got = blender("preferences_changed", table)
    assert (tmp_path / "props.results.csv").read_text().count(",failed,") == 1  # its mesh could not be imported
    assert (got["arriving"], got["batches"], got["jobs"]) == (True, 1, ["failed", "done"])
    assert "another file" in got["note"]
    assert got["objects"] == ["Kiste"]


def test_a_job_that_was_left_is_taken_up_once(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("left_unfinished")
    assert got["left"] == [got["asked"]]
    assert (got["then"], got["jobs"], got["objects"]) == ([], 1, ["Kiste"])


def test_a_backend_that_is_installed_meanwhile_is_the_next_to_start(
    blender: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    got = blender("installed_meanwhile", tmp_path / "home")
    assert (got["before"], got["left"], got["jobs"]) == (1, 0, ["waiting"])
    assert got["starts"]


def test_the_command_of_blender(blender: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    got = blender("command_line", tmp_path / "deep" / "box.blend")
    assert got["statuses"] == [2, 1, 1, 0]  # wrong arguments, nothing to start from, a failed job, done
    assert got["objects"] == ["Kiste", "Kiste_LOD1", "Kiste_LOD2"]
    assert got["height"] == pytest.approx(0.5, rel=1e-3)


def test_dropped_files_become_objects_where_they_were_dropped(
    blender: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "dropped"
    folder.mkdir()
    picture = Image.new("RGB", (32, 32), "red")
    for name in ("a.png", "b.png", "still.gif"):
        picture.save(folder / name)
    picture.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (32, 32))], duration=100)
    (folder / "turn.MP4").write_bytes(b"")
    got = blender("dropped", folder)
    assert got["asked"] == [
        ["a.png", None], ["still.gif", None], [None, "moving.gif"], [None, "turn.MP4"], [None, "dropped"],
    ]  # fmt: skip
    x, y, z = zip(*(got["places"][name] for name in ("a", "still", "moving", "turn")), strict=True)
    assert (y, z) == ((1,) * 4, (0,) * 4)
    assert x[0] == 2
    assert min(np.diff(x)) > 1  # the others beside it, each 1.2 m wide
    assert got["menu"] is True


def test_pictures_can_be_dropped(blender: Callable[..., dict[str, Any]]) -> None:
    got = blender("drop_handler")
    assert got["there"] is True
    assert got["label"] == "Generate 3D Object"
    assert {".png", ".mp4", ".mov", ".gif"} <= set(got["files"].split(";"))
