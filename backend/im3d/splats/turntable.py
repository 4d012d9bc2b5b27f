"""The animated turntable of a finished object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from im3d.core.orbit import Orbit
from im3d.core.storage import replacing
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import render

FRAMES, SIZE, MILLISECONDS = 36, 256, 80


def write_turntable(path: Path, gaussians: Gaussians, orbit: Orbit) -> None:
    """One turn of the splats on white, as an animated WebP that loops.

    Args:
        path: The .webp file.
        gaussians: On the CPU.
        orbit: Its elevation, distance and angle of view are used.
    """
    ring = Orbit.uniform(FRAMES, orbit.elevation_deg, orbit.fov_deg, orbit.radius)
    with torch.no_grad():
        frames = render(gaussians, ring.cameras(SIZE), "cpu").over(1.0).clamp(0, 1).numpy()
    pictures = [Image.fromarray((frame * 255 + 0.5).astype(np.uint8)) for frame in frames]
    with replacing(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, quality=80, method=2
        )
