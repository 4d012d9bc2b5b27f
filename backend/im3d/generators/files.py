"""`files`: the user's own views as a generator. Nothing is generated, and nothing can be refined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from im3d.errors import InputError
from im3d.generators.base import Family, Generator, GeneratorInputs, Subject, ViewFacts

if TYPE_CHECKING:
    from im3d.core.images import OrbitViews
    from im3d.core.progress import Progress
    from im3d.views.files import ProvidedViews


class FilesGenerator:
    """Provided views as a `Generator`.

    Args:
        provided: The views, as `read_provided_views` returns them.
    """

    name = "files"
    framing = 1.0
    input_frame = None
    can_refine = False
    takes_elevation = False
    refine_noise = 0.0
    network_calls = 0

    def __init__(self, provided: ProvidedViews) -> None:
        self._provided = provided
        self.orbit = provided.views.orbit
        self.size = provided.views.size

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        """The provided views; `subject` and `seed` are ignored."""
        progress(1, 1, self._provided.views.rgba[0])
        return self._provided.views

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Raises:
        InputError: Always; only a network can denoise renders.
        """
        raise InputError("Views from files cannot be refined.", "Set refine.rounds=0 or choose another generator.")

    def facts(self) -> ViewFacts:
        """What the files say about the views."""
        known = self._provided
        return ViewFacts("given", known.direction_known, known.radius_known, known.mask_method, known.warnings)

    def release(self) -> None:
        """There is nothing to free."""


def _build(name: str, inputs: GeneratorInputs) -> Generator:
    from im3d.views.files import read_provided_views

    if inputs.views is None:
        raise InputError(f"The generator {name} needs the views of an orbit.", "Provide them.")
    return FilesGenerator(read_provided_views(inputs.views, segment=inputs.segment))


FAMILY = Family(("files",), _build, lambda name: None, starts_from="views")
