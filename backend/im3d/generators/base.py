"""What the pipeline and the generators know of each other (paper 3.1 and 3.4).

A generator makes the views of an orbit. It belongs to a `Family`, which tells what can be built here and builds it. To
add a family: write a package beside this file that implements `Generator` and describes itself in a `Family`, list its
weights in models.toml, add it to `FAMILIES` in choose.py, and give it a section in settings.py if it has settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from im3d.settings import Settings

if TYPE_CHECKING:  # the command line reads the families' names, and should not wait for these
    import torch

    from im3d.core.images import OrbitViews
    from im3d.core.orbit import Orbit
    from im3d.core.progress import Progress
    from im3d.views.masks import Segment

FloatArray = NDArray[np.float32]
# "given": by whoever provided the views; "network": predicted together with them (as in paper 3.3); "prior": a usual
# one, because the generator needs an elevation and none was known.
ElevationSource = Literal["given", "network", "prior"]


@dataclass(frozen=True)
class Subject:
    """The picture a generator turns into an orbit.

    Attributes:
        rgba: (S, S, 4) float32 in [0, 1], sRGB, straight alpha, framed as an orbit view: the object's bounding sphere
            fills it.
        prompt: The sentence it came from, or "".
    """

    rgba: FloatArray
    prompt: str = ""


@dataclass(frozen=True)
class ViewFacts:
    """How far the cameras and masks of a generator's views can be trusted. The defaults are those of a network.

    Attributes:
        elevation_source: Where `elevation_deg` of the views' orbit comes from, if it is not None.
        direction_known: Whether the sign of the azimuths is certain.
        radius_known: Whether the orbit's camera distance is the true one. A picture does not tell a small near object
            from a large far one, so a network's is only a convention.
        mask_method: Where the masks of the views came from, for the result; None: the generator made them.
        warnings: For the user, a sentence each.
    """

    elevation_source: ElevationSource = "network"
    direction_known: bool = True
    radius_known: bool = False
    mask_method: str | None = None
    warnings: tuple[str, ...] = ()


class Generator(Protocol):
    """A source of orbit views.

    Attributes:
        name: As on the command line, e.g. "mini".
        orbit: The K cameras of the views. `elevation_deg` is None where it can only be estimated from the views.
        size: Side of the views in pixels.
        framing: Longest side of the subject over the side of its picture, in (0, 1], for pictures that are cut out.
        input_frame: Index of the view that shows the subject itself; None where no view is truer than the others.
        can_refine: Whether `refine` works.
        takes_elevation: Whether `refine` renders from the elevation of the views it receives, whatever that is.
        refine_noise: Share of the noise ladder, in (0, 1], from which its own views are best denoised again.
        network_calls: Evaluations of the network so far. A step with classifier-free guidance counts two; so the
            paper's "around 40" for the first orbit and at most 80 in all (3.4, Table 4) are 20 steps and two rounds of
            10 steps.
    """

    name: str
    orbit: Orbit
    size: int
    framing: float
    can_refine: bool
    takes_elevation: bool
    refine_noise: float
    network_calls: int

    @property
    def input_frame(self) -> int | None:
        """See above; a property, so that a generator may promise one of the two."""

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        """The orbit of a subject, from noise.

        Args:
            subject: None for a generator that starts from provided views.
            seed: The same seed gives the same views on the same machine.
            progress: Receives (step, steps, preview) and may raise `CancelledError`.

        Raises:
            ModelError: The weights are missing or damaged.
            OutOfMemoryError: The device is too small; the message names the next smaller mode.
        """

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Renders of the splats, noised and denoised again (paper 3.4): x = z0 + σ·ε, then down the noise ladder.

        Args:
            subject: What the first orbit was made from.
            renders: (K, S, S, 4) of this generator's azimuths.
            noise: Share of the noise ladder to start at, in (0, 1]; 1 is a start from pure noise.
            steps: Denoising steps to spend.
            seed, progress: As for `generate`.

        Raises:
            InputError: `can_refine` is False.
        """

    def facts(self) -> ViewFacts:
        """What is known of the views that `generate` has made."""

    def release(self) -> None:
        """Frees the memory of the networks; the next use reads them again."""


@dataclass(frozen=True)
class GeneratorInputs:
    """What a generator is built from.

    Attributes:
        device: Where to compute.
        settings: Of the job; a family with settings of its own has a section there.
        elevation_deg: Elevation of the input view in degrees, where the user gave it.
        segment: Segmentation network for views whose background is not plain.
        views: The provided views, a folder or a video; None where the job starts from a picture.
    """

    device: torch.device
    settings: Settings = field(default_factory=Settings)
    elevation_deg: float | None = None
    segment: Segment | None = None
    views: Path | None = None


@dataclass(frozen=True)
class Family:
    """Generators that share their code, as choose.py needs to know them. Describing them imports no networks.

    Attributes:
        names: Of its generators, the best first.
        build: (name, inputs) → the generator, whose weights are read at its first use. Raises `InputError` where a
            setting does not suit.
        require: Name → None. Raises `ModelError` where its weights are not installed.
        obstacle: (name, device) → why "auto" should not choose it on this device, the end of a sentence that begins
            with the name; None where nothing speaks against it.
        starts_from: What it makes views of: a picture, or views that the user provides.
        takes_elevation: The names whose generators render at a given elevation (`Generator.takes_elevation`). "auto"
            prefers them where the elevation is known, and the others where it is not.
    """

    names: tuple[str, ...]
    build: Callable[[str, GeneratorInputs], Generator]
    require: Callable[[str], object]
    obstacle: Callable[[str, torch.device], str | None] = lambda name, device: None
    starts_from: Literal["picture", "views"] = "picture"
    takes_elevation: tuple[str, ...] = ()
