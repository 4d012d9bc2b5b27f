"""How long the stages of a job took here before, and from that the share that is done and the time left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

STAGES = ("load", "image", "orbit", "fit", "refine", "mesh", "texture", "export")
# Shares of a job on a machine that has not run one yet: the demo's on two cores.
USUAL_SHARES = {"load": 3, "image": 1, "orbit": 8, "fit": 50, "refine": 1, "mesh": 17, "texture": 13, "export": 10}
# A new measurement counts this much against all before: machines are busier at times.
RENEWAL = 0.4


class StageTimes:
    """Seconds of each stage, learnt from finished jobs and kept in a file.

    Args:
        path: The JSON file; damaged or missing is as good as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, float]] = {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self._known = {str(k): {s: float(v[s]) for s in STAGES} for k, v in stored.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass

    def learn(self, key: str, timings: dict[str, Any]) -> None:
        """Takes over the timings of a finished job; a file that cannot be written is no reason to fail."""
        try:
            new = {stage: max(float(timings.get(stage, 0.0)), 0.0) for stage in STAGES}
        except (TypeError, ValueError):
            return
        old = self._known.get(key)
        self._known[key] = new if old is None else {s: old[s] + RENEWAL * (new[s] - old[s]) for s in STAGES}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            pass

    def estimate(self, key: str, stage: str, step: int, steps: int, eta_s: float | None) -> tuple[float, float | None]:
        """Share of the whole job that is done, and the seconds left, None while nothing is known.

        Args:
            key: Jobs of one kind on one device.
            stage: The running stage.
            step: Steps of it that are done, of
            steps: so many.
            eta_s: What the stage itself expects, or None.
        """
        known = self._known.get(key)
        weights = known or USUAL_SHARES
        if stage not in STAGES:
            return 0.0, None
        at = STAGES.index(stage)
        within = min(max(step / steps, 0.0), 1.0) if steps > 0 else 0.0
        before = sum(weights[s] for s in STAGES[:at])
        after = sum(weights[s] for s in STAGES[at + 1 :])
        total = before + weights[stage] + after
        fraction = (before + within * weights[stage]) / total if total > 0 else 0.0
        if known is None:
            return fraction, None
        return fraction, after + (eta_s if eta_s is not None else (1 - within) * known[stage])


def kind(device: str, request: dict[str, Any]) -> str:
    """Jobs that take about the same time."""
    source = "views" if request.get("views") else "picture" if request.get("image") else "prompt"
    return " ".join((device or "cpu", source, str(request.get("generator", "auto")), str(request.get("preset", ""))))
