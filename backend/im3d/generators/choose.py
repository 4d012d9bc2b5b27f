"""Which generator makes the views: the one that was named, or the best that is installed and fits the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from im3d.errors import InputError, ModelError
from im3d.generators import files
from im3d.generators.base import Family, Generator, GeneratorInputs
from im3d.generators.mini import family as mini
from im3d.generators.sv3d import family as sv3d
from im3d.models.catalog import models

if TYPE_CHECKING:
    import torch

# In the order in which "auto" considers them.
FAMILIES: tuple[Family, ...] = (
    sv3d.FAMILY,
    mini.FAMILY,
    files.FAMILY,
)


@dataclass(frozen=True)
class Choice:
    """The generator of a job.

    Attributes:
        name: Of the generator, e.g. "mini".
        reason: Why "auto" chose it, a sentence; "" where it was named, or where there was nothing to choose.
    """

    name: str
    reason: str = ""


def generator_names() -> tuple[str, ...]:
    """What a user may choose, "auto" first."""
    return ("auto", *(name for family in FAMILIES for name in family.names))


def choose_generator(
    wanted: str, device: torch.device, elevation_known: bool = False, provided_views: bool = False
) -> Choice:
    """The generator of a job.

    For a picture, "auto" chooses the first that is installed and that the device suits: families in the order of
    `FAMILIES`, and within a family those that take an elevation first if it is known, last if it is not.

    Args:
        wanted: "auto" or a name.
        device: Where it is to compute.
        elevation_known: Whether the user gave the elevation.
        provided_views: Whether the job starts from the user's views instead of a picture.

    Raises:
        InputError: There is no generator of that name, or it does not suit the source.
        ModelError: Its weights, or with "auto" all weights, are missing; the remedy downloads them.
    """
    if wanted != "auto":
        family = find_family(wanted)
        if family.starts_from == "views" and not provided_views:
            raise InputError(
                f"The generator {wanted} needs the views of an orbit.", "Provide them, or choose another generator."
            )
        if family.starts_from == "picture" and provided_views:
            raise InputError(
                f"{wanted} makes views of a picture, and this job starts from views.", "Choose the generator auto."
            )
        family.require(wanted)
        return Choice(wanted)
    return _automatic(device, elevation_known, provided_views)


def build_generator(name: str, inputs: GeneratorInputs) -> Generator:
    """The generator of that name; its weights are read at its first use.

    Raises:
        InputError: There is none, or a setting is out of range or names a file that is not there.
        ModelError: Its weights are not installed.
    """
    return find_family(name).build(name, inputs)


def generators_with_elevation() -> list[str]:
    """The names of those that render at any elevation they receive."""
    return [name for family in FAMILIES for name in family.takes_elevation]


def _automatic(device: torch.device, elevation_known: bool, provided_views: bool) -> Choice:
    """See `choose_generator`."""
    candidates = [
        (family, name)
        for family in FAMILIES
        if (family.starts_from == "views") == provided_views
        for name in sorted(family.names, key=lambda n: (n in family.takes_elevation) != elevation_known)
    ]
    passed: list[str] = []
    some_installed = False
    for family, name in candidates:
        try:
            family.require(name)
        except ModelError:
            passed.append(f"{name} is not installed")
            continue
        some_installed = True
        obstacle = family.obstacle(name, device)
        if obstacle is None:
            return Choice(name, "" if provided_views else _reason(name, passed))
        passed.append(f"{name} {obstacle}")
    if some_installed:
        raise ModelError(
            f"No generator that turns a picture into views can run here: {'; '.join(passed)}.",
            "Free some memory, choose the generator by its name all the same, or provide the views of an orbit.",
        )
    raise _nothing_installed([name for _, name in candidates], device)


def find_family(name: str) -> Family:
    """The family of a generator.

    Raises:
        InputError: There is no generator of that name.
    """
    for family in FAMILIES:
        if name in family.names:
            return family
    raise InputError(f"There is no generator {name}.", f"Choose one of: {', '.join(generator_names())}.")


def _reason(name: str, passed: list[str]) -> str:
    return f"{name} is the best that is installed and fits ({'; '.join(passed) or 'it is the first choice'})."


def _nothing_installed(names: list[str], device: torch.device) -> ModelError:
    """Offers the best of these that can be downloaded."""
    best = next(models()[name] for name in names if name in models() and not models()[name].shipped)
    need = "" if device.type == "cuda" else f"; it needs an NVIDIA GPU of {best.vram_gb:g} GB, which is missing here"
    return ModelError(
        "No generator that turns a picture into views is installed.",
        f"Download {best.title} ({best.size}{need}), or provide the views of an orbit.",
        f"download {best.name}",
    )
