"""What choose.py needs to know of SV3D's two models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from im3d.errors import InputError
from im3d.generators.base import Family, Generator, GeneratorInputs
from im3d.models.catalog import require

if TYPE_CHECKING:
    import torch


def _build(name: str, inputs: GeneratorInputs) -> Generator:
    from im3d.generators.sv3d.generator import Sv3dGenerator

    settings = inputs.settings.sv3d
    if settings.finetuned and not Path(settings.finetuned).is_file():
        raise InputError(f"{settings.finetuned} does not exist.", "Correct sv3d.finetuned, or leave it out.")
    return Sv3dGenerator(
        "sv3d_p" if name == "sv3d_p" else "sv3d_u",
        inputs.device,
        inputs.elevation_deg,
        views=settings.views,
        size=settings.size,
        steps=settings.steps,
        guidance=settings.guidance,
        memory=settings.memory,
        compiled=settings.compile,
        finetuned=Path(settings.finetuned) if settings.finetuned else None,
        segment=inputs.segment,
    )


def _obstacle(name: str, device: torch.device) -> str | None:
    """On a processor SV3D takes hours."""
    from im3d.models.memory_modes import MODES, free_gigabytes

    if device.type != "cuda":
        return "needs a GPU"
    free, least = free_gigabytes(device), MODES[-1].needs_gb
    return f"needs {least:g} GB of free GPU memory and {free:.1f} GB are free" if free < least else None


FAMILY = Family(("sv3d_u", "sv3d_p"), _build, require, _obstacle, takes_elevation=("sv3d_p",))
