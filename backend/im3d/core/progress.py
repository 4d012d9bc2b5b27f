"""How a stage tells its caller how far it is, and how a caller stops it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Progress(Protocol):
    """Called by a stage after each step.

    Raising `CancelledError` from the call is the way to stop a stage: stages do not catch it and hold no resource
    that an exception would leak.
    """

    def __call__(self, step: int, steps: int, preview: NDArray[np.float32] | None = None) -> None:
        """Args:
        step: Steps finished, 1 … steps; 0 while something large is loaded first.
        steps: Steps in this stage.
        preview: Optional picture of the state, (H, W, 3 or 4) in [0, 1].
        """


def silent(step: int, steps: int, preview: NDArray[np.float32] | None = None) -> None:
    """A `Progress` that says nothing."""


def part(progress: Progress, begin: float, end: float) -> Progress:
    """The `Progress` of one part of a stage, from `begin` to `end` of it, both in [0, 1]; reported in hundredths."""
    if progress is silent:
        return silent

    def report(step: int, steps: int, preview: NDArray[np.float32] | None = None) -> None:
        done = step / steps if steps else 0.0
        progress(round(100 * (begin + done * (end - begin))), 100, preview)

    return report
