"""New draws of the training props that take the place of the last one while training goes on."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from im3d.cli import main as cli
from im3d.errors import CancelledError, InputError
from im3d_lab.training import command as train
from im3d_lab.training.data import draws
from im3d_lab.training.data.batches import OrbitBatches
from im3d_lab.training.data.draws import DrawRequest, Redrawing
from im3d_lab.training.data.helpers import helpers
from im3d_lab.training.data.orbits import OrbitSet, delete_orbits


def written(folder: Path, draw: int) -> OrbitSet:
    """Orbits on disk whose every byte is the draw's number."""
    data = folder / f"orbits-{draw}.u8"
    folder.mkdir(exist_ok=True)
    views: Any = np.memmap(data, np.uint8, "w+", shape=(3, 16, 8, 8, 4))
    views[:] = draw
    (folder / f"orbits-{draw}.npz").write_bytes(b"")
    split = np.array(["train", "validation", "train"])
    return OrbitSet(views, np.full(3, draw, np.float32), split, np.array(["a", "b", "c"]), draw)


@pytest.fixture
def request_(tmp_path: Path) -> DrawRequest:
    return DrawRequest([], tmp_path / "cache", 8, 1, 1, 1, 0, draw=4)


def test_draws_follow_each_other_and_leave_no_files(request_: DrawRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    may_render = threading.Event()

    def rendered(*arguments: Any) -> OrbitSet:
        assert may_render.wait(20)
        return written(arguments[1], arguments[7])

    monkeypatch.setattr(draws, "render_packs", rendered)
    monkeypatch.setattr(draws, "frames", lambda orbits, *_: (orbits.elevation_deg, np.eye(4)[None]))
    now = [100.0]
    monkeypatch.setattr(draws.time, "monotonic", lambda: now[0])
    redrawing = Redrawing(request_, pause_s=60)
    assert not redrawing.ready  # not due yet
    now[0] += 60
    assert not redrawing.ready  # being rendered
    may_render.set()
    first = redrawing.take()
    assert first.orbits.draw == 5
    assert redrawing.ready
    assert len(list(request_.folder.iterdir())) == 2
    redrawing.discard(first)
    assert not redrawing.ready
    assert redrawing.take().orbits.draw == 6
    assert int(first.orbits.views[0, 0, 0, 0, 0]) == 5  # mapped pictures outlive their files
    redrawing.__exit__()
    assert not list(request_.folder.iterdir())


def test_a_failed_render_is_heard_of(request_: DrawRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> OrbitSet:
        raise OSError("No space left on device")

    monkeypatch.setattr(draws, "render_packs", fail)
    with Redrawing(request_, pause_s=60) as redrawing, pytest.raises(OSError, match="No space"):
        redrawing.take()


# Prints its helpers' process ids once they work, and then ends as it is told, or waits to be killed.
TRAINING = """
import multiprocessing, os, signal, sys, time
from im3d_lab.training.data.helpers import helpers
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit that it is ignored
with helpers(2) as pool:
    pool.submit(abs, 1).result()
    busy = [pool.submit(time.sleep, 600) for _ in range(2)]
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if sys.argv[1] == "raise":
        raise RuntimeError
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["raise", "SIGINT", "SIGTERM", "SIGKILL"])
def test_helpers_end_with_training(end: str) -> None:
    training = subprocess.Popen([sys.executable, "-u", "-c", TRAINING, end], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in training.stdout.readline().split()]
    assert len(processes) == 2
    if end != "raise":
        training.send_signal(signal.Signals[end])
    training.wait(timeout=60)
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_a_rendering_under_way_ends_when_training_fails(request_: DrawRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def rendered(*arguments: Any) -> None:
        with helpers(1, stop=arguments[8]) as pool:
            pool.submit(time.sleep, 600).result()

    monkeypatch.setattr(draws, "render_packs", rendered)
    redrawing = Redrawing(request_, pause_s=0)
    with pytest.raises(RuntimeError, match="training"), redrawing:
        assert not redrawing.ready
        raise RuntimeError("training")
    assert isinstance(redrawing._coming.exception(timeout=0), BrokenProcessPool)


def test_sigterm_ends_training_like_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def until_stopped(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    previous = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "_train_mini", until_stopped)
    folders = ["--pack", "p.npz", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    try:
        assert cli.main(["train", "mini", *folders]) == CancelledError.exit_status
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_the_users_files_and_an_earlier_training_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_train_mini", lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    out = tmp_path / "out"
    command = ["train", "mini", "--pack", "p.npz", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert cli.main(command) == 0
    (out / "log.jsonl").touch()  # of a run that was killed before it saved anything
    assert cli.main(command) == 0
    (out / "state.pt").touch()
    assert cli.main(command) == InputError.exit_status
    assert "holds a training already" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(train, "_train_mini", lambda args, *_: given.append(args))
    assert cli.main([*command, "--resume", "--draw", "3", "--drawn-views", "5"]) == 0
    assert cli.main([*command, "--resume", "--orbit-seed", "3", "--rendered-views", "5"]) == 0
    assert [(args.orbit_seed, args.rendered_views) for args in given] == [(3, 5), (3, 5)]
    assert capsys.readouterr().err.count("the old name goes") == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    assert cli.main([*command[:-1], str(tmp_path / "photos")]) == InputError.exit_status
    assert "holds other files" in capsys.readouterr().err


def test_batches_show_the_new_draw(tmp_path: Path) -> None:
    batches = OrbitBatches(written(tmp_path, 1), np.array([0, 2]), torch.device("cpu"), 8)
    batches.redrawn(written(tmp_path, 7))
    views, elevation = batches.take([1])
    assert torch.equal(views * 255, torch.full_like(views, 7))
    assert elevation.tolist() == [7]


def test_orbits_in_memory_have_no_files(tmp_path: Path) -> None:
    delete_orbits(
        OrbitSet(np.zeros((1, 16, 8, 8, 4), np.uint8), np.zeros(1, np.float32), np.array(["train"]), np.array(["a"]))
    )
