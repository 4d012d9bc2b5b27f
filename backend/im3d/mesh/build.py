"""The mesh stage: from splats and views to a surface, and from a surface to a textured mesh."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from im3d.core.images import OrbitViews
from im3d.core.orbit import Cameras
from im3d.core.progress import Progress, part, silent
from im3d.core.storage import replacing
from im3d.mesh.fusion.field import CPU, density_field, fused_field
from im3d.mesh.fusion.operations import operations_on
from im3d.mesh.outline import fit_outlines
from im3d.mesh.surface import TriangleMesh, extract_surface, simplified
from im3d.mesh.texture.bake import atlas_texels, bake_colors, bake_normals, splat_colors, views_of_mesh
from im3d.mesh.texture.tangents import vertex_tangents
from im3d.mesh.texture.unwrap import UnwrappedMesh, unwrap
from im3d.settings import MeshSettings, TextureSettings
from im3d.splats.depth import seen_directions
from im3d.splats.gaussians import Gaussians

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Surface:
    """The reconstructed shape.

    Attributes:
        full: As marching cubes gave it, for the normal map.
        mesh: Simplified to the face budget.
    """

    full: TriangleMesh
    mesh: TriangleMesh

    def save(self, path: Path) -> None:
        """Writes both meshes to one .npz."""
        with replacing(path) as temporary:
            np.savez(
                temporary,
                full_vertices=self.full.vertices,
                full_faces=self.full.faces,
                vertices=self.mesh.vertices,
                faces=self.mesh.faces,
            )

    @classmethod
    def load(cls, path: Path) -> Surface:
        with np.load(path) as data:
            return cls(
                TriangleMesh(data["full_vertices"], data["full_faces"]), TriangleMesh(data["vertices"], data["faces"])
            )


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh ready for export, in world units.

    Attributes:
        mesh: Cut open for its atlas.
        normals: (V, 3) smooth unit normals.
        tangents: (V, 4) unit tangents and the bitangent's sign.
        base_color: (S, S, 3) sRGB in [0, 1].
        normal_map: (S, S, 3) in [0, 1], or None.
        unseen: Share of the texels that no view saw.
    """

    mesh: UnwrappedMesh
    normals: FloatArray
    tangents: FloatArray
    base_color: FloatArray
    normal_map: FloatArray | None
    unseen: float

    def save(self, path: Path) -> None:
        arrays = {"normals": self.normals, "tangents": self.tangents, "base_color": self.base_color}
        if self.normal_map is not None:
            arrays["normal_map"] = self.normal_map
        with replacing(path) as temporary:
            np.savez(
                temporary,
                vertices=self.mesh.vertices,
                faces=self.mesh.faces,
                uv=self.mesh.uv,
                source=self.mesh.source,
                unseen=np.float64(self.unseen),
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> TexturedMesh:
        with np.load(path) as data:
            return cls(
                UnwrappedMesh(data["vertices"], data["faces"], data["uv"], data["source"]),
                data["normals"],
                data["tangents"],
                data["base_color"],
                data.get("normal_map"),
                float(data["unseen"]),
            )


def build_surface(
    gaussians: Gaussians,
    views: OrbitViews,
    settings: MeshSettings,
    progress: Progress = silent,
    device: torch.device = CPU,
) -> Surface:
    """The shape of the splats.

    Args:
        gaussians: Those that some view sees (`SplatFit.finished`), on the CPU.
        views: The views that were fitted.
        settings: See `MeshSettings`.
        progress: Called after each step.
        device: Where depth maps are fused.

    Raises:
        InputError: The views do not describe a solid object.
    """
    if settings.route == "density":
        field = density_field(gaussians, settings)
    else:
        field = fused_field(gaussians, views, settings, part(progress, 0.0, 0.6), device)
    full = extract_surface(field, views)
    progress(70, 100)
    mesh = simplified(full, settings.faces)
    progress(80, 100)
    if settings.route == "fusion" and settings.outline_rounds:
        mesh = fit_outlines(mesh, views, settings.outline_rounds, part(progress, 0.8, 1.0))
    return Surface(full, mesh)


def texture_surface(
    surface: Surface,
    gaussians: Gaussians,
    views: OrbitViews,
    settings: TextureSettings,
    progress: Progress = silent,
    input_view: int | None = None,
    device: torch.device = CPU,
) -> TexturedMesh:
    """UV atlas, base colour and normal map of a surface.

    Args:
        surface: Of `build_surface`.
        gaussians, views: As it took them.
        settings: See `TextureSettings`.
        progress: Called after each step.
        input_view: As `bake_colors` takes it.
        device: Where the splats are rendered to find from where they were seen.
    """
    # xatlas has a process of its own, so the thread that waits for it costs nothing. Numba's parallel loops stay on
    # this thread: not every threading layer of it may be entered from two.
    with ThreadPoolExecutor(1) as waiting:
        atlas = waiting.submit(unwrap, surface.mesh, settings.size)
        cameras = views.orbit.cameras(views.size)
        directions = seen_from(gaussians, cameras, device).numpy()
        progress(10, 100)
        smooth = surface.mesh.vertex_normals()
        mesh_views = views_of_mesh(surface.mesh.vertices, surface.mesh.faces, views)
        progress(20, 100)
        unwrapped = atlas.result()
        progress(30, 100)
    normals = smooth[unwrapped.source]
    tangents = vertex_tangents(unwrapped, normals)
    texels = atlas_texels(unwrapped, normals, settings.size)
    with ThreadPoolExecutor(1) as beside:
        normal_map = None
        if settings.normal_map:
            # It needs no numba.
            normal_map = beside.submit(bake_normals, unwrapped, texels, normals, tangents, surface.full)
        means, colors = gaussians.means.numpy(), gaussians.colors.numpy()
        # The atlas has the same faces; were they in another order, what the views show would not be its.
        same = np.array_equal(unwrapped.source[unwrapped.faces], surface.mesh.faces)
        base_color, unseen = bake_colors(
            unwrapped, texels, views, lambda rows: splat_colors(texels, rows, means, colors, directions), settings,
            part(progress, 0.3, 1.0), input_view, mesh_views if same else None,
        )  # fmt: skip
    detail = normal_map.result() if normal_map else None
    return TexturedMesh(unwrapped, normals, tangents, base_color, detail, unseen)


def seen_from(gaussians: Gaussians, cameras: Cameras, device: torch.device) -> torch.Tensor:
    """`seen_directions` of splats on the CPU, from where cameras see them; the work is done on `device`."""
    splats = gaussians.to(device)
    return seen_directions(splats, cameras, operations_on(device).blending_weights(splats, cameras)).cpu()
