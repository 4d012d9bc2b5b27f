"""The interface between the pipeline and whatever makes the views of an orbit (paper 3.1 and 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.core.progress import Progress

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
        framing: Longest side of the subject over the side of the picture that suits it, for pictures that are cut out.
        input_frame: Index of the view that shows the subject.
        can_refine: Whether `refine` works; a generator of given views cannot.
        refine_noise: Share of the noise ladder that suits a refinement of this generator's views.
        network_calls: Evaluations of the network so far. A guided step is two, with and without the subject: so the
            paper's "around 40" first and at most 80 in all (3.4, Table 4) are 20 steps and two rounds of 10.
    """

    name: str
    orbit: Orbit
    size: int
    framing: float
    input_frame: int
    can_refine: bool
    refine_noise: float
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
            steps: Denoising steps to spend.
        """

    def release(self) -> None:
        """Frees the memory of the networks; the next use reads them again."""
