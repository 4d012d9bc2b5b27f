"""Finished jobs on disk, as the backend leaves them. No bpy here."""

from __future__ import annotations

import json
import locale
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class JobError(Exception):
    """A folder that holds no finished job; the text is a sentence for the user."""


@dataclass(frozen=True)
class FinishedJob:
    """What result.json says, with the paths made absolute.

    Attributes:
        folder: The job folder.
        name: Name for the object.
        prompt: The prompt, "" for a job without one.
        mesh: The GLB.
        preview: A picture of it, or None.
        height_m: Height in metres.
        faces: Triangles, 0 when unknown.
        generator: Where the views came from.
        seed: Seed of the job.
        splats: The splats' PLY, or None.
        orbit_from_glb: 4×4 matrix from the GLB's coordinates to the splats'; empty when unknown.
        finished: Time of result.json, seconds since the epoch.
        warnings: What the user should know about the result.
    """

    folder: Path
    name: str
    prompt: str
    mesh: Path
    preview: Path | None
    height_m: float
    faces: int
    generator: str
    seed: int
    splats: Path | None
    orbit_from_glb: list[list[float]]
    finished: float
    warnings: tuple[str, ...] = ()


def read_job(path: Path) -> FinishedJob:
    """The finished job in a folder.

    Args:
        path: The job folder, or its result.json.

    Raises:
        JobError: There is no finished job, or its files are damaged.
    """
    folder = path if path.is_dir() else path.parent
    try:
        file = folder / "result.json"
        result = json.loads(file.read_text(encoding="utf-8"))
        job = _from_result(folder, result, file.stat().st_mtime)
    except FileNotFoundError:
        raise JobError(f"{folder} holds no finished job.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"The result in {folder} cannot be read: {error}.") from error
    if not job.mesh.is_file():
        raise JobError(f"The mesh of the job in {folder} is missing.")
    return job


def find_jobs(folder: Path) -> list[FinishedJob]:
    """The finished jobs in the folders directly under `folder`, the newest first; what cannot be read is left out."""
    jobs = []
    try:
        entries = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []
    for entry in entries:
        try:
            jobs.append(read_job(Path(entry)))
        except JobError:
            continue
    return sorted(jobs, key=lambda job: job.finished, reverse=True)


def _from_result(folder: Path, result: dict[str, Any], finished: float) -> FinishedJob:
    height = float(result["height_m"])
    if not (math.isfinite(height) and height > 0):
        raise ValueError(f"a height of {height} m")
    preview, splats = (folder / result[key] if result.get(key) else None for key in ("preview", "splats"))
    return FinishedJob(
        folder=folder.absolute(),
        name=str(result["name"]),
        prompt=str(result.get("prompt", "")),
        mesh=folder.absolute() / result["mesh"],
        preview=preview.absolute() if preview is not None and preview.is_file() else None,
        height_m=height,
        faces=int(result.get("mesh_stats", {}).get("faces", 0)),
        generator=str(result.get("generator", "")),
        seed=int(result.get("seed", 0)),
        splats=splats.absolute() if splats is not None and splats.is_file() else None,
        orbit_from_glb=result.get("orbit_from_glb", []),
        finished=finished,
        warnings=tuple(map(str, result.get("warnings") or ())),
    )


def date_text(seconds: float) -> str:
    """Date and time in the user's own format; where the system tells none, in the international one.

    Args:
        seconds: Since the epoch.
    """
    # Blender starts in the C locale, in which %x is American.
    before = locale.setlocale(locale.LC_TIME)
    try:
        own = locale.setlocale(locale.LC_TIME, "")
        plain = own.split(".")[0] in ("C", "POSIX")
        return time.strftime("%Y-%m-%d %H:%M" if plain else "%x %H:%M", time.localtime(seconds))
    except locale.Error:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    finally:
        locale.setlocale(locale.LC_TIME, before)
