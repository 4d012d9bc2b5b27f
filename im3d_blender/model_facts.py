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

FACTS = Path(__file__).resolve().parent.parent / "backend" / "im3d" / "models.toml"
# The models of each generator that needs any.
NEEDS = {"sv3d_p": "sv3d_p", "sv3d_u": "sv3d_u", "mini": "mini"}


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    Attributes:
        name: As on the command line.
        title: What people call it.
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
    """The licence that goes with what a generator made; "" when it is the user's own matter (brought views)."""
    needed = next((m for m in models if m.name == NEEDS.get(generator, "")), None)
    return needed.licence if needed is not None else ""


def _model(home: Path, name: str, entry: dict[str, Any]) -> ModelFacts:
    return ModelFacts(
        name=name,
        title=str(entry["title"]),
        purpose=str(entry["purpose"]),
        size=f"{entry['bytes'] / 1e9:.1f} GB" if entry["bytes"] > 1e9 else f"{entry['bytes'] / 1e6:.0f} MB",
        vram_gb=float(entry["vram_gb"]),
        licence=str(entry["licence"]),
        licence_url=str(entry["licence_url"]),
        commercial=str(entry["commercial"]),
        gated=bool(entry["gated"]),
        page=f"https://huggingface.co/{entry['repository']}" if "repository" in entry else "",
        installed=bool(entry.get("shipped")) or _is_installed(home / "models" / name),
    )


def _is_installed(folder: Path) -> bool:
    try:
        files = json.loads((folder / "installed.json").read_text(encoding="utf-8"))["files"]
        return bool(files) and all((folder / file["path"]).stat().st_size == file["bytes"] for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False
