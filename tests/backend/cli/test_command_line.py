"""The command line itself: output in every encoding, and defects that are reported whatever else is broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from im3d.cli import main as cli
from im3d.core.storage import write_json
from im3d.errors import InputError
from im3d.jobs.job import Job, Request

# Of Japan, China and Russia on Windows, and of a container without a locale.
ENCODINGS = ("cp932", "gbk", "cp1251", "ascii")
NAME = "Кружка マグ ² 杯"


def run(encoding: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    return subprocess.run(
        [sys.executable, "-m", "im3d.cli", *arguments], capture_output=True, timeout=120, env=environment
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished job, as far as its summary goes."""
    folder = tmp_path / NAME
    job = Job.create(folder, Request(name=NAME, views="/gone"))
    job.end("done")
    result = {
        "name": NAME, "mesh": "mesh.glb", "splats": "splats.ply", "preview": "preview.png",
        "turntable": "turntable.webp",
        "mesh_stats": {"faces": 8, "watertight": True, "texture_size": 256}, "timings_s": {"total": 1.0},
        "generator": "files", "network_calls": 0, "rasterizer": "cpu", "device": "cpu", "perceptual": "none",
        "warnings": ["The elevation of the views, 15°, is a guess …"],
    }  # fmt: skip
    write_json(folder / "result.json", result)
    return folder


def test_commands_of_the_laboratory_are_listed_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "train or fine-tune a generator" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert "generate" in listed
    assert not any(f"    {name} " in listed for name in cli.LAB_COMMANDS)
    assert cli.main(["bench", "fit", "--json"]) == InputError.exit_status
    said = capsys.readouterr()
    assert "im3d bench belongs to im3d_lab, which is not installed" in said.err
    assert "extra [lab]" in json.loads(said.out)["hint"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_output_fits_into_every_encoding(encoding: str, finished: Path) -> None:
    summary = run(encoding, "resume", str(finished))
    assert (summary.returncode, b"Traceback" in summary.stderr) == (0, False)
    assert b"8 faces, closed, texture of 256 pixels" in summary.stdout
    answered = run(encoding, "resume", str(finished), "--json")
    assert json.loads(answered.stdout.decode(encoding))["mesh"] == str(finished / "mesh.glb")
    refused = run(encoding, "generate", "--image", NAME, "--out", str(finished.parent / "new"), "--json")
    assert (refused.returncode, b"Traceback" in refused.stderr) == (2, False)
    assert json.loads(refused.stdout.decode(encoding))["message"].endswith(f"{NAME} does not exist.")


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--image", "PIPE", "--out", "OUT"],
        ["generate", "--prompt", "x", "--image", "examples/cabinet.png", "--mask", "PIPE", "--out", "OUT"],
        ["generate", "--views", "PIPE", "--out", "OUT"],
        ["batch", "PIPE", "--out", "OUT"],
        ["models", "download", "sv3d_u", "--from", "PIPE"],
        ["train", "mini", "--pack", "PIPE", "--cache", "OUT/cache", "--out", "OUT"],
    ],
)
def test_a_pipe_as_input_is_refused_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    os.mkfifo(tmp_path / "pipe.png")
    places = {"PIPE": str(tmp_path / "pipe.png"), "OUT": str(tmp_path / "out"), "OUT/cache": str(tmp_path / "cache")}
    assert cli.main([places.get(word, word) for word in command]) == InputError.exit_status
    assert "is a pipe or a device" in capsys.readouterr().err


def test_a_defect_is_reported_without_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("at all")

    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("im3d.cli.resume.run_job", broken)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", nowhere)
    assert cli.main(["resume", str(finished), "--json"]) == 1
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert json.loads(said.out)["message"] == "im3d failed: ZeroDivisionError: at all."
