"""New draws of the training props that take the place of the last one while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from im3d.training import draws
from im3d.training.batches import OrbitBatches
from im3d.training.draws import DrawRequest, Redrawing
from im3d.training.orbits import OrbitSet, delete_orbits


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
        return written(arguments[1], arguments[-1])

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
    redrawing.close()
    assert not list(request_.folder.iterdir())


def test_a_failed_render_is_heard_of(request_: DrawRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> OrbitSet:
        raise OSError("No space left on device")

    monkeypatch.setattr(draws, "render_packs", fail)
    redrawing = Redrawing(request_, pause_s=60)
    with pytest.raises(OSError, match="No space"):
        redrawing.take()
    redrawing.close()


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
