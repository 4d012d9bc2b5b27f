"""Makes the README's pictures from a finished job on given views: `python tools/readme_pictures.py JOB docs/images`.

from_views.png: four input views, the mesh from four cameras that were not in the input, Blender's preview.
routes.png: the paper's mesh route (marching cubes on the splats' density) beside ours, colours and normals.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im3d.images import over, read_image, read_views, resized
from im3d.mesh.bake import _bilinear
from im3d.mesh.build import TexturedMesh, build_surface, texture_surface
from im3d.mesh.draw import rasterize_mesh, to_screen
from im3d.orbit import Cameras, look_at_origin
from im3d.settings import MeshSettings, TextureSettings
from im3d.splats.ply import load_ply

TILE, SCALE = 256, 3
NEW_CAMERAS = ((11.0, 5.0), (101.0, 35.0), (191.0, 10.0), (281.0, 30.0))


def shaded(mesh: TexturedMesh, cameras: Cameras, normals: bool) -> list[NDArray[Any]]:
    """(S, S, 3) pictures of a mesh on white: its texture, or its normals as colours."""
    pictures = []
    for k in range(len(cameras)):
        size = cameras.size * SCALE
        buffers = rasterize_mesh(to_screen(mesh.mesh.vertices, cameras, k, SCALE), mesh.mesh.faces, size)
        fine, covered = np.ones((size, size, 3), np.float32), buffers.face >= 0
        if normals:
            fine[covered] = buffers.interpolate(mesh.normals, mesh.mesh.faces) * 0.5 + 0.5
        else:
            uv = buffers.interpolate(mesh.mesh.uv, mesh.mesh.faces) * len(mesh.base_color)
            fine[covered] = _bilinear(mesh.base_color, uv)
        pictures.append(fine.reshape(cameras.size, SCALE, cameras.size, SCALE, 3).mean(axis=(1, 3)))
    return pictures


def save(path: Path, rows: list[list[NDArray[Any]]]) -> None:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    Image.fromarray((np.clip(sheet, 0, 1) * 255 + 0.5).astype(np.uint8)).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    views, gaussians = read_views(args.job / "views"), load_ply(args.job / "splats.ply")
    viewmats = np.stack([look_at_origin(a, e, views.orbit.radius) for a, e in NEW_CAMERAS])
    cameras = Cameras(viewmats, views.orbit.cameras(TILE).focal, TILE)
    texture = TextureSettings(normal_map=False)
    meshes = [
        texture_surface(build_surface(gaussians, views, MeshSettings(route=route)), gaussians, views, texture)
        for route in ("density", "fusion")
    ]
    inputs = [over(view) for view in views.resized(TILE).rgba[::4]]
    preview = over(resized(read_image(args.job / "preview.png"), 2 * TILE, 2 * TILE))
    ours = shaded(meshes[1], cameras, normals=False)
    pairs = [[inputs[2 * i], inputs[2 * i + 1], ours[2 * i], ours[2 * i + 1]] for i in range(2)]
    left = np.concatenate([np.concatenate(row, axis=1) for row in pairs], axis=0)
    save(args.out / "from_views.png", [[left, preview]])
    save(args.out / "routes.png", [
        [*shaded(mesh, cameras[:2], normals=False), *shaded(mesh, cameras[:2], normals=True)] for mesh in meshes
    ])  # fmt: skip


if __name__ == "__main__":
    main()
