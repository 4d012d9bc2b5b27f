"""From splats to a file: every step of the mesh and texture stages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.mesh.build import Surface, TexturedMesh, seen_from
from im3d.mesh.fusion.field import fused_field
from im3d.mesh.gltf import write_glb
from im3d.mesh.outline import fit_outlines
from im3d.mesh.surface import extract_surface, simplified
from im3d.mesh.texture.bake import atlas_texels, bake_colors, bake_normals, splat_colors
from im3d.mesh.texture.tangents import vertex_tangents
from im3d.mesh.texture.unwrap import unwrap
from im3d.settings import FitSettings, Settings
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.render import best_rasterizer
from im3d_lab.bench.measure import Bench

# Enough for an ordinary number of splats in ordinary places.
FIT = FitSettings(iterations=300, lpips=0.0, ms_ssim=0.0, rgb=2.0)


def bench_mesh(bench: Bench, views: OrbitViews, settings: Settings) -> dict[str, Any]:
    """Measures depth fusion, marching cubes, simplification, outlines, atlas, baking and export.

    Returns:
        Splats, faces and texture size.
    """
    fit = SplatFit(views, FIT, 0, bench.device, best_rasterizer(bench.device), None)
    fit.run(FIT.iterations)
    gaussians = Gaussians(**{k: v.cpu() for k, v in vars(fit.finished()).items()})
    mesh, texture = settings.mesh, settings.texture

    field = _kept(bench, "depth fusion", lambda: fused_field(gaussians, views, mesh, device=bench.device))
    full = _kept(bench, "marching cubes", lambda: extract_surface(field, views))
    coarse = _kept(bench, "simplification", lambda: simplified(full, mesh.faces))
    surface = _kept(bench, "outlines", lambda: Surface(full, fit_outlines(coarse, views, mesh.outline_rounds)))
    unwrapped = _kept(bench, "atlas", lambda: unwrap(surface.mesh, texture.size))
    normals = surface.mesh.vertex_normals()[unwrapped.source]
    tangents = vertex_tangents(unwrapped, normals)
    texels = _kept(bench, "texels", lambda: atlas_texels(unwrapped, normals, texture.size))
    directions = seen_from(gaussians, views.orbit.cameras(views.size), bench.device).numpy()

    def guess(rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        return splat_colors(texels, rows, gaussians.means.numpy(), gaussians.colors.numpy(), directions)

    baked = _kept(bench, "baking", lambda: bake_colors(unwrapped, texels, views, guess, texture))
    normal_map = _kept(bench, "normal map", lambda: bake_normals(unwrapped, texels, normals, tangents, surface.full))
    textured = TexturedMesh(unwrapped, normals, tangents, baked[0], normal_map, baked[1])
    with tempfile.TemporaryDirectory() as folder:
        bench.measure("GLB", lambda: write_glb(Path(folder) / "mesh.glb", textured, "bench", 1.0))
    return {"splats": len(gaussians), "faces": len(surface.mesh.faces), "texture": texture.size}


def _kept(bench: Bench, part: str, work: Any) -> Any:
    """Measures `work` and returns what its last call returned."""
    kept: list[Any] = []

    def run() -> None:
        kept[:] = [work()]

    bench.measure(part, run)
    return kept[0]
