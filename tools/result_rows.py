"""A row for each finished job that began with a picture: `python tools/result_rows.py OUT.png JOB [JOB …]`.

The picture, four of the views that the generator made of it, Blender's preview, and the textured mesh from four sides.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from readme_pictures import save, shaded

from im3d.core.images import over, read_image, read_views, resized
from im3d.core.orbit import Cameras, look_at_origin
from im3d.mesh.build import build_surface, texture_surface
from im3d.settings import preset_settings
from im3d.splats.ply import load_ply
from im3d_lab.evaluate.run import last_views

TILE = 192
SIDES_DEG = (25.0, 115.0, 205.0, 295.0)
ELEVATION_DEG = 15.0


def row(job: Path) -> list[NDArray[Any]]:
    """Tiles (TILE, …, 3) of one job."""
    drawn, views, gaussians = read_views(job / "views"), last_views(job), load_ply(job / "splats.ply")
    settings = preset_settings("standard")
    viewmats = np.stack([look_at_origin(a, ELEVATION_DEG, views.orbit.radius) for a in SIDES_DEG])
    cameras = Cameras(viewmats, views.orbit.cameras(TILE).focal, TILE)
    surface = build_surface(gaussians, views, settings.mesh)
    mesh = texture_surface(surface, gaussians, views, settings.texture, input_view=0)
    shown = [over(resized(view, TILE, TILE)) for view in drawn.rgba[2::4]]
    preview = Image.open(job / "preview.png").convert("RGB").resize((TILE, TILE))
    return [over(resized(read_image(job / "subject.png"), TILE, TILE)), *shown, np.asarray(preview) / 255,
            *shaded(mesh, cameras, normals=False)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("jobs", type=Path, nargs="+")
    args = parser.parse_args()
    save(args.out, [row(job) for job in args.jobs])


if __name__ == "__main__":
    main()
