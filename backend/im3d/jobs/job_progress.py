"""How far a whole job is: the share of its work that is done, and the seconds left.

Each step counts for the time that it is expected to take: what jobs of its kind took on this machine before, or else
what they took on two cores of a processor.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from im3d.core.storage import write_json
from im3d.errors import Im3dError
from im3d.jobs.job import Request
from im3d.shared.names import STAGES

# Seconds, for a machine that has not finished such a job yet.
USUAL = dict(zip(STAGES, (3.0, 1.0, 4.0, 30.0, 5.0, 8.0, 5.0, 6.0), strict=True))
PICTURE_SHARE = 0.9  # of the stage image, where the picture is generated first
BLEND_SHARE = 0.4  # of the stage export
# A new measurement counts this much against all before: machines are busier at times.
RENEWAL = 0.4
# The job's own pace outweighs the expected time from this share of the work on.
PACE_FROM = 0.1


@dataclass(frozen=True)
class Step:
    """A step of a job: its unique name, the stage it counts for, and its share of that stage's work."""

    name: str
    stage: str
    share: float = 1.0


def planned_steps(request: Request, notes: Mapping[str, Any]) -> list[Step]:
    """All steps of a job in the order of `im3d.pipeline`, whose steps a test compares with these.

    Args:
        request: The job's.
        notes: Those of its state, as far as they exist; see `fit_pauses`.
    """
    fit, pauses = request.settings.fit, fit_pauses(request, notes)
    steps = [Step("load", "load")]
    if request.only_prompt:
        steps.append(Step("picture", "image", PICTURE_SHARE))
    steps += [Step("image", "image", 1 - PICTURE_SHARE if request.only_prompt else 1.0), Step("orbit", "orbit")]
    for number, (since, until) in enumerate(zip([0, *pauses], pauses, strict=False), start=1):
        steps.append(Step(f"fit to {until}", "fit", (until - since) / fit.iterations))
        if until < fit.iterations:
            steps.append(Step(f"refine {number}", "refine", 1 / (len(pauses) - 1)))
    steps += [Step("splats", "fit", 0.0), Step("mesh", "mesh"), Step("texture", "texture")]
    blend = blend_step(request)
    if blend is None:
        return [*steps, Step("export", "export")]
    return [*steps, Step("export", "export", 1 - BLEND_SHARE), Step(blend, "export", BLEND_SHARE)]


def blend_step(request: Request) -> str | None:
    """A step of its own for each .blend, since a finished job may be resumed for another one."""
    return None if request.blend is None else f"blend {request.blend}"


def fit_pauses(request: Request, notes: Mapping[str, Any]) -> list[int]:
    """The iterations at which the fit pauses for a refinement round, and its end (paper 3.4: 500, 1000, 1200).

    The note `can_refine` of the chosen generator decides whether there are rounds. Until the generator is chosen they
    are expected unless views are provided.
    """
    iterations, refine = request.settings.fit.iterations, request.settings.refine
    rounds = refine.rounds if notes.get("can_refine", request.views is None) else 0
    return [pause for n in range(1, rounds + 1) if (pause := refine.interval * n) < iterations] + [iterations]


class JobProgress:
    """The share of a job that is done, from its steps' reports.

    Args:
        steps: All of the job's, in order.
        finished: Names of those that were finished earlier.
        seconds: Of each stage, as a `StageTimes` knows them; None: not known here.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        steps: list[Step],
        finished: list[str],
        seconds: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self.fraction = clock, 0.0
        self.plan(steps, finished, seconds)

    def plan(self, steps: list[Step], finished: list[str], seconds: dict[str, float] | None) -> None:
        """Replaces what was expected of the job by what is known now; arguments as above."""
        self._start = self._clock()
        expected = seconds or USUAL
        weights = {step.name: step.share * expected[step.stage] for step in steps}
        self._known_s = sum(weights.values()) if seconds else None
        total = sum(weights.values()) or 1.0
        self._shares = {name: weight / total for name, weight in weights.items()}
        self._done = sum(self._shares[name] for name in finished if name in self._shares)
        self._begun_at = self.fraction = max(self.fraction, self._done)

    def within(self, step: str, done: float) -> None:
        """`done` of the step, from 0 to 1, is behind us; `fraction` never falls."""
        self.fraction = min(max(self.fraction, self._done + done * self._shares.get(step, 0.0)), 1.0)

    def finish(self, step: str) -> None:
        """The step is complete."""
        self.within(step, 1.0)
        self._done += self._shares.get(step, 0.0)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the job, None while nobody can tell."""
        here, elapsed = self.fraction - self._begun_at, self._clock() - self._start
        if self._known_s is not None:
            pace = (PACE_FROM * self._known_s + elapsed) / (PACE_FROM + here)
        elif here >= PACE_FROM:
            pace = elapsed / here
        else:
            return None
        return round((1 - self.fraction) * pace, 1)


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

    def of(self, kind: str) -> dict[str, float] | None:
        """What is known of jobs of this kind."""
        return self._known.get(kind)

    def learn(self, kind: str, timings: dict[str, float]) -> None:
        """Takes over the timings of a finished job; where they cannot be kept they are forgotten."""
        new = {stage: timings.get(stage, 0.0) for stage in STAGES}
        old = self._known.get(kind)
        self._known[kind] = new if old is None else {s: old[s] + RENEWAL * (new[s] - old[s]) for s in STAGES}
        if self._path.parent.is_dir():
            with contextlib.suppress(OSError, Im3dError):
                write_json(self._path, self._known)


def kind(device: str, request: Request, notes: Mapping[str, Any]) -> str:
    """Jobs of one kind take about the same time on one machine: they share generator, settings and refinement rounds.

    Args:
        device, request: Of the job.
        notes: Those of its state, with the chosen generator; before it is chosen the request's name stands for it.
    """
    source = "views" if request.views else "image" if request.image else "prompt"
    fit, generator = request.settings.fit, notes.get("generator", request.generator)
    rounds = len(fit_pauses(request, notes)) - 1
    return f"{device} {source} {generator} {request.preset} {fit.iterations}x{fit.size} {rounds} rounds"
