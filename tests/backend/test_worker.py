"""The process that does the work: what it leaves behind when a job is over."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from im3d import pipeline, worker
from im3d.errors import CancelledError
from im3d.jobs import Job, Request
from im3d.protocol import Message


class Splats:
    """Stands for what a job holds of the GPU."""


@pytest.mark.parametrize("cancelled", [False, True])
def test_memory_is_handed_back_when_nothing_of_the_job_is_left(
    cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Splats]] = []
    left: list[Splats | None] = []

    def run_pipeline(*_: Any, **__: Any) -> dict[str, Any]:
        splats = Splats()
        held.append(weakref.ref(splats))
        if cancelled:
            raise CancelledError("The job was cancelled.")
        return {}

    said: list[Message] = []
    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    order: list[str] = []
    monkeypatch.setattr(worker.MODELS, "rest", lambda: order.append("rest"))

    def give_back_memory() -> None:
        order.append("give back")
        left.extend(ref() for ref in held)

    monkeypatch.setattr(worker, "give_back_memory", give_back_memory)
    job = Job.create(tmp_path / "job", Request(name="pot", views=str(tmp_path)))
    worker.Worker(said.append, None)._work("a", job.folder)  # type: ignore[arg-type]
    assert left == [None]
    assert order == ["rest", "give back"]
    assert [message["type"] for message in said] == ["error" if cancelled else "result"]
