"""Makes the README's pictures from finished jobs.

    python tools/readme_pictures.py JOB --out docs/images              from a job on provided views
    python tools/readme_pictures.py JOB JOB JOB --demo --out docs/images    from jobs on pictures
    python tools/readme_pictures.py JOB … --gallery --out docs/images       the same, a file each

routes.png: the paper's mesh route (marching cubes on the splats' density) beside ours, colours and normals.
gallery/*.jpg, one for each job (--gallery): the picture, Blender's preview, the mesh from four sides.
demo.png, a row for each job: the picture, four of the views that were drawn of it, Blender's preview, the mesh from
there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates

from im3d.core.images import over, read_image, read_views, resized
from im3d.core.orbit import Cameras, look_at_origin
from im3d.mesh.build import TexturedMesh, build_surface, texture_surface
from im3d.mesh.rasterize import rasterize_mesh, to_screen
from im3d.settings import MeshSettings, TextureSettings
from im3d.splats.ply import load_ply

TILE, SCALE = 256, 3
NEW_CAMERAS = ((11.0, 5.0), (101.0, 35.0))
# Of the demo's views and cameras, and the side of its tiles.
DEMO_VIEWS, DEMO_TILE = [2, 6, 10, 14], 192


def shaded(mesh: TexturedMesh, cameras: Cameras, normals: bool) -> list[NDArray[Any]]:
    """(S, S, 3) pictures of a mesh on white: its texture, or its normals as colours."""
    if normals:
        return drawn(mesh.mesh.vertices, mesh.mesh.faces, mesh.normals * 0.5 + 0.5, None, cameras)
    return drawn(mesh.mesh.vertices, mesh.mesh.faces, mesh.mesh.uv, mesh.base_color, cameras)


def drawn(
    vertices: NDArray[Any], faces: NDArray[Any], values: NDArray[Any], texture: NDArray[Any] | None, cameras: Cameras
) -> list[NDArray[Any]]:
    """(S, S, 3) pictures on white of vertex colours (V, 3), or of a texture at coordinates (V, 2), v downwards."""
    pictures = []
    for k in range(len(cameras)):
        size = cameras.size * SCALE
        buffers = rasterize_mesh(to_screen(vertices, cameras, k, SCALE), faces, size)
        fine, covered = np.ones((size, size, 3), np.float32), buffers.face >= 0
        found = buffers.interpolate(values, faces)
        if texture is not None:
            places = found[:, ::-1].T * len(texture) - 0.5
            found = np.stack([map_coordinates(texture[..., c], places, order=1, mode="nearest") for c in range(3)], -1)
        fine[covered] = found
        pictures.append(fine.reshape(cameras.size, SCALE, cameras.size, SCALE, 3).mean(axis=(1, 3)))
    return pictures


def demo_row(job: Path) -> list[NDArray[Any]]:
    """The tiles of one job on a picture."""
    views = read_views(job / ("refined" if (job / "refined").exists() else "views"))
    first = read_views(job / "views").resized(DEMO_TILE)
    scene = trimesh.load(job / "mesh.glb", force="scene")
    (mesh,) = scene.geometry.values()
    matrix = np.array(json.loads((job / "result.json").read_text(encoding="utf-8"))["orbit_from_glb"])
    vertices = (mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
    uv = np.asarray(mesh.visual.uv) * [1, -1] + [0, 1]  # trimesh counts v upwards
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), np.float32) / 255
    cameras = views.orbit.cameras(DEMO_TILE)[DEMO_VIEWS]
    preview = over(resized(read_image(job / "preview.png"), DEMO_TILE, DEMO_TILE))
    seen = [over(first.rgba[k]) for k in [0, *DEMO_VIEWS]]
    return [*seen, preview, *drawn(vertices, mesh.faces.astype(np.int32), uv, texture, cameras)]


def save(path: Path, rows: list[list[NDArray[Any]]]) -> None:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    Image.fromarray((np.clip(sheet, 0, 1) * 255 + 0.5).astype(np.uint8)).save(path, optimize=True, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, nargs="+")
    parser.add_argument("--demo", action="store_true", help="from jobs on pictures")
    parser.add_argument("--gallery", action="store_true", help="from jobs on pictures, a file each")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.gallery:
        for job in args.jobs:
            picture = over(resized(read_image(job / "subject.png"), DEMO_TILE, DEMO_TILE))
            (args.out / "gallery").mkdir(exist_ok=True)
            save(args.out / "gallery" / f"{job.name}.jpg", [[picture, *demo_row(job)[-5:]]])
        return
    if args.demo:
        save(args.out / "demo.png", [demo_row(job) for job in args.jobs])
        return
    (job,) = args.jobs
    views, gaussians = read_views(job / "views"), load_ply(job / "splats.ply")
    viewmats = np.stack([look_at_origin(a, e, views.orbit.radius) for a, e in NEW_CAMERAS])
    cameras = Cameras(viewmats, views.orbit.cameras(TILE).focal, TILE)
    texture = TextureSettings(normal_map=False)
    meshes = [
        texture_surface(build_surface(gaussians, views, MeshSettings(route=route)), gaussians, views, texture)
        for route in ("density", "fusion")
    ]
    save(args.out / "routes.png", [
        [*shaded(mesh, cameras, normals=False), *shaded(mesh, cameras, normals=True)] for mesh in meshes
    ])  # fmt: skip


if __name__ == "__main__":
    main()
