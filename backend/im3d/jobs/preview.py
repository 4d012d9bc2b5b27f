"""The preview picture of a finished job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from im3d.blender import find_blender, render_preview
from im3d.core.orbit import Orbit
from im3d.errors import Im3dError, InputError
from im3d.jobs.job import Job
from im3d.jobs.runner import write_preview
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import render

SIZE = 512


def make_preview(
    job: Job, gaussians: Gaussians, orbit: Orbit, blender: Path | None, warn: Callable[[str], None]
) -> None:
    """Writes preview.png: the mesh rendered by Cycles where there is a Blender, otherwise the splats.

    A preview that cannot be made never fails a job.

    Args:
        job: With its mesh.glb.
        gaussians: Its splats, on the CPU.
        orbit: Of its views.
        blender: Blender executable, where bpy is not installed.
        warn: Receives why the preview shows the splats, where Blender failed.
    """
    path = job.folder / "preview.png"
    try:
        found = find_blender(blender)
        try:
            render_preview(found, job.folder / "mesh.glb", path)
            return
        except (Im3dError, OSError) as error:
            warn(f"The preview shows the splats, because Blender could not render the mesh: {error}")
    except InputError as error:
        job.log(f"preview from the splats: {error}")
    with torch.no_grad():
        picture = render(gaussians, orbit.cameras(SIZE)[0], "cpu").over(1.0)[0].clamp(0, 1).numpy()
    write_preview(path, np.dstack([picture, np.ones(picture.shape[:2], np.float32)]))
