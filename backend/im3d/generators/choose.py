"""Which generator makes the views: the one that was asked for, or the best that is installed and fits the memory.

The generators are imported where they are needed: diffusers and transformers take seconds, which a job whose views are
given should not wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from im3d.errors import InputError, ModelError
from im3d.generators.base import Generator
from im3d.models.catalog import find_model, installed, require
from im3d.models.memory_modes import MODES, free_gigabytes
from im3d.settings import Settings
from im3d.views.masks import Segment


@dataclass(frozen=True)
class Choice:
    """A generator that turns a picture into views.

    Attributes:
        name: "sv3d_u", "sv3d_p" or "mini".
        reason: Why "auto" took it, a sentence; "" when it was asked for by name.
    """

    name: str
    reason: str = ""


def choose_generator(wanted: str, device: torch.device, elevation_known: bool = False) -> Choice:
    """The generator for a job whose source is a picture.

    "auto" takes the first of SV3D and mini that is installed and that the device holds. Of SV3D's two, `sv3d_p` goes
    first where the elevation is known, since it can be told; `sv3d_u` otherwise. Without a GPU SV3D takes hours, and
    runs only when it is asked for by name.

    Args:
        wanted: "auto" or a name.
        device: Where it is to compute.
        elevation_known: Whether the user gave the elevation.

    Raises:
        InputError: There is no generator of that name.
        ModelError: Its weights, or with "auto" all weights, are missing; the remedy downloads them.
    """
    if wanted == "mini":
        _require_mini()
        return Choice("mini")
    if wanted in ("sv3d_u", "sv3d_p"):
        require(wanted)
        return Choice(wanted)
    if wanted != "auto":
        raise InputError(f"There is no generator {wanted}.", "Choose auto, sv3d_u, sv3d_p or mini.")
    passed: list[str] = []
    for name in ("sv3d_p", "sv3d_u") if elevation_known else ("sv3d_u", "sv3d_p"):
        obstacle = _sv3d_obstacle(name, device)
        if obstacle is None:
            return Choice(name, _reason(name, passed))
        passed.append(obstacle)
    try:
        _require_mini()
    except ModelError as error:
        raise _nothing_fits(passed, device) from error
    return Choice("mini", _reason("mini", passed))


def build_generator(
    name: str, settings: Settings, device: torch.device, elevation_deg: float | None, segment: Segment | None
) -> Generator:
    """The generator of that name; its weights are read when it is first used.

    Args:
        name: As in `Choice`.
        settings: Of the job; each generator reads its own section.
        device: Where to compute.
        elevation_deg: The elevation that the user gave.
        segment: A segmentation network for drawn views whose background is not plain.

    Raises:
        InputError: A setting is out of range, or names a file that is not there.
    """
    if name == "mini":
        from im3d.generators.mini.generator import MiniGenerator

        return MiniGenerator(device, settings.mini.steps, settings.mini.views, elevation_deg)
    from im3d.generators.sv3d.generator import Sv3dGenerator

    sv3d = settings.sv3d
    if sv3d.finetuned and not Path(sv3d.finetuned).is_file():
        raise InputError(f"{sv3d.finetuned} does not exist.", "Correct sv3d.finetuned, or leave it out.")
    return Sv3dGenerator(
        "sv3d_p" if name == "sv3d_p" else "sv3d_u",
        device,
        elevation_deg,
        views=sv3d.views,
        size=sv3d.size,
        steps=sv3d.steps,
        guidance=sv3d.guidance,
        memory=sv3d.memory,
        compiled=sv3d.compile,
        finetuned=Path(sv3d.finetuned) if sv3d.finetuned else None,
        segment=segment,
    )


def _require_mini() -> None:
    """Raises:
    ModelError: Its weights are not installed.
    """
    from im3d.generators.mini.generator import mini_weights

    mini_weights()


def _sv3d_obstacle(name: str, device: torch.device) -> str | None:
    """Why "auto" passes SV3D by, or None."""
    if installed(name) is None:
        return f"{name} is not installed"
    if device.type != "cuda":
        return f"{name} needs a GPU"
    free, least = free_gigabytes(device), MODES[-1].needs_gb
    return f"{name} needs {least:g} GB of free GPU memory and {free:.1f} GB are free" if free < least else None


def _reason(name: str, passed: list[str]) -> str:
    return f"{name} is the best that is installed and fits ({'; '.join(passed) or 'nothing better was passed by'})."


def _nothing_fits(passed: list[str], device: torch.device) -> ModelError:
    best = find_model("sv3d_u")
    if installed(best.name) or installed("sv3d_p"):
        return ModelError(
            f"No generator that turns a picture into views can run here: {'; '.join(passed)}.",
            "Free some memory, choose the generator by its name all the same, or bring the views of an orbit.",
        )
    need = "" if device.type == "cuda" else f"; it wants an NVIDIA GPU of {best.vram_gb:g} GB, which is missing here"
    return ModelError(
        "No generator that turns a picture into views is installed.",
        f"Download {best.title} ({best.size}{need}), or bring the views of an orbit.",
        f"download {best.name}",
    )
