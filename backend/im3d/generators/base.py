"""The interface between the pipeline and whatever makes the views of an orbit (paper 3.1 and 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from im3d.images import OrbitViews
from im3d.orbit import Orbit
from im3d.progress import Progress

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """The picture a generator turns into an orbit.

    Attributes:
        rgba: (S, S, 4) float32 in [0, 1], straight alpha, framed as an orbit view: the object's
            bounding sphere fills it.
        prompt: The sentence it came from, or "".
    """

    rgba: FloatArray
    prompt: str = ""


class Generator(Protocol):
    """One family of orbit generators.

    Attributes:
        name: As on the command line, e.g. "mini".
        orbit: The cameras of the views it makes. `elevation_deg` is None when only the finished views tell it.
        size: Side of the views in pixels.
        input_frame: Index of the view that shows the subject.
        can_refine: Whether `refine` works; a generator of given views cannot.
        network_calls: Evaluations of the network so far, conditional and unconditional passes of one step counted once
            as in the paper's Table 4.
    """

    name: str
    orbit: Orbit
    size: int
    input_frame: int
    can_refine: bool
    network_calls: int

    def generate(self, subject: Subject, seed: int, progress: Progress) -> OrbitViews:
        """The orbit of a subject from noise.

        Raises:
            ModelError: Weights are missing.
            OutOfMemoryError: The device is too small; the message names the next smaller mode.
            CancelledError: Raised by `progress`.
        """

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Renders of the splats, noised and denoised again (paper 3.4): x = z0 + σ·ε, then the rest of the ladder.

        Args:
            renders: Views of this generator's orbit.
            noise: Share of the noise ladder to climb back, in (0, 1]; 1 is a start from pure noise.
            steps: Network evaluations to spend.
        """
