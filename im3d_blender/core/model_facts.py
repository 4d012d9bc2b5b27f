"""The models as the backend describes them, and which of them are installed. No bpy here.

The facts stand in the backend's models.toml, which travels in the same archive; what is installed is what the backend
recorded in its home. Nothing here touches the network.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .job_request import GENERATORS, VIEWS_GENERATOR

FACTS = Path(__file__).resolve().parents[2] / "backend" / "im3d" / "models" / "models.toml"
YOUR_VIEWS = "your views"
# The models of each generator that needs any.
NEEDS = {"sv3d_p": "sv3d_p", "sv3d_u": "sv3d_u", "mini": "mini"}


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    Attributes:
        name: As on the command line.
        title: What people call it, short.
        purpose: "orbit", "image", "mask" or "loss".
        size: Of the download, e.g. "9.4 GB".
        vram_gb: Least GPU memory.
        licence: Its name.
        licence_url: Its text.
        commercial: "yes", "no" or "conditions".
        gated: Whether the hub asks for a login and consent.
        page: At the hub; "" for a model that comes with the backend.
        installed: Whether its files are recorded in the backend's home, or came with the backend.
    """

    name: str
    title: str
    purpose: str
    size: str
    vram_gb: float
    licence: str
    licence_url: str
    commercial: str
    gated: bool
    page: str
    installed: bool


def read_models(home: Path, facts: Path = FACTS) -> list[ModelFacts]:
    """All models in models.toml's order; empty when the file is not there or cannot be read."""
    try:
        entries = tomllib.loads(facts.read_text(encoding="utf-8"))
        return [_model(home, name, entry) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def licence_of(generator: str, models: list[ModelFacts]) -> str:
    """The licence that goes with what a generator made; "" when it is the user's own matter (own views)."""
    needed = next((m for m in models if m.name == NEEDS.get(generator, "")), None)
    return needed.licence if needed is not None else ""


def automatic(models: list[ModelFacts], gpu: bool, elevation_known: bool) -> str:
    """The generator that the backend's "auto" will take: the rule of its `choose_generator`.

    Only the backend knows how much of the GPU's memory will be free; where it is too little, it takes Mini.

    Args:
        gpu: Whether there is an NVIDIA GPU.
    """
    there = {m.name for m in models if m.installed}
    return next((name for name in preferred(elevation_known) if gpu and name in there), "mini")


def preferred(elevation_known: bool) -> tuple[str, ...]:
    """The generators better than Mini, the best first: one is told the elevation, the other estimates it."""
    return ("sv3d_p", "sv3d_u") if elevation_known else ("sv3d_u", "sv3d_p")


def generator_label(name: str) -> str:
    """What people call a generator, in English; an unknown one keeps its name."""
    labels = {identifier: label for identifier, label, _ in GENERATORS}
    return YOUR_VIEWS if name == VIEWS_GENERATOR else labels.get(name, name)


def _model(home: Path, name: str, entry: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        name=name,
        title=str(entry["title"]),
        purpose=str(entry["purpose"]),
        size=_size(entry["bytes"]),
        vram_gb=float(entry["vram_gb"]),
        licence=str(entry["licence"]),
        licence_url=str(entry["licence_url"]),
        commercial=str(entry["commercial"]),
        gated=bool(entry["gated"]),
        page=f"https://huggingface.co/{entry['repository']}" if "repository" in entry else "",
        installed=bool(entry.get("shipped")) or _is_installed(home / "models" / name),
    )


def _size(count: float) -> str:
    """Bytes for people: "177 MB", "9.4 GB", "16 GB"."""
    if count < 999.5e6:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB" if count < 9.95e9 else f"{count / 1e9:.0f} GB"


def _is_installed(folder: Path) -> bool:
    try:
        files = json.loads((folder / "installed.json").read_text(encoding="utf-8"))["files"]
        return bool(files) and all((folder / file["path"]).stat().st_size == file["bytes"] for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False
