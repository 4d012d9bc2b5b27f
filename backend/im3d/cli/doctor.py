"""`im3d doctor`: what this machine can do, what is missing, and what that costs."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from im3d import __version__

PACKAGES = ("torch", "diffusers", "gsplat", "warp-lang", "numba", "lpips", "manifold3d", "xatlas", "bpy")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--blender", metavar="FILE", help="Blender executable, where bpy is not installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    facts = diagnose(args.blender)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, entry in value.items():
                print(f"  {key}: {entry}")
        else:
            print(f"{name}: {value}")
    return 0


def diagnose(blender: str | None = None) -> dict[str, Any]:
    """Facts about this machine, as nested dictionaries of plain values; nothing that identifies the user."""
    import psutil
    import torch

    from im3d.models.catalog import installed, models
    from im3d.splats.losses.perceptual import perceptual_name
    from im3d.splats.render import rasterizers

    cuda = torch.cuda.is_available()
    return {
        "im3d": __version__,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else 0.0,
        "free_disk_gb": _free_disk_gb(),
        "rasterizers": {name: reason or "available" for name, reason in rasterizers().items()},
        "rasterizer": _rasterizer(cuda),
        "perceptual": perceptual_name(),
        "models": {name: "installed" if installed(name) else "not installed" for name in models()},
        "blender": _blender(blender),
    }


def _free_disk_gb() -> float:
    """In the temporary folder, or, where there is none, here."""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        folder = "."
    return round(shutil.disk_usage(folder).free / 2**30, 1)


def _rasterizer(cuda: bool) -> str:
    """The one that a job would use; why there is none for the GPU is a fact about the machine, not a failure."""
    import torch

    from im3d.errors import InputError
    from im3d.splats.render import best_rasterizer

    try:
        return best_rasterizer(torch.device("cuda" if cuda else "cpu"))
    except InputError as error:
        return str(error)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _blender(explicit: str | None) -> str:
    from im3d.blender import find_blender
    from im3d.errors import InputError

    try:
        return str(find_blender(Path(explicit) if explicit else None))
    except InputError as error:
        return str(error)
