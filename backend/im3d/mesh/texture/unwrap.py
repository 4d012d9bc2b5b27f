"""UV atlas by xatlas, in a process of its own: it was seen to hang and to crash on some meshes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im3d.mesh.surface import TriangleMesh
from im3d.shared.processes import bound

FloatArray = NDArray[np.float32]
# 20 000 faces take 1.2 s; a minute means that it hangs.
TIME_LIMIT_S = 60.0
PADDING_PX = 4
WORKER = Path(__file__).with_name("xatlas_worker.py")


@dataclass(frozen=True)
class UnwrappedMesh:
    """A mesh cut open for texturing.

    Attributes:
        vertices: (V, 3) float32; vertices on seams appear once for each chart.
        faces: (F, 3) int32.
        uv: (V, 2) float32 in [0, 1], v downwards as glTF and images count.
        source: (V,) int32, the vertex of the closed mesh that each came from.
    """

    vertices: FloatArray
    faces: NDArray[np.int32]
    uv: FloatArray
    source: NDArray[np.int32]


def unwrap(mesh: TriangleMesh, texture_size: int) -> UnwrappedMesh:
    """An atlas without overlaps, padded for a texture of `texture_size` pixels.

    When xatlas fails or exceeds its time limit, faces are laid out by the axis they face instead: more seams, never
    a hang.
    """
    atlas = _xatlas(mesh, texture_size)
    if atlas is None:
        atlas = _grid_atlas(mesh, texture_size)
    source, faces, uv = atlas
    return UnwrappedMesh(mesh.vertices[source], faces, uv, source)


def _xatlas(mesh: TriangleMesh, texture_size: int) -> tuple[NDArray[np.int32], NDArray[np.int32], FloatArray] | None:
    with tempfile.TemporaryDirectory(prefix="im3d-") as folder:
        source, result = Path(folder) / "mesh.npz", Path(folder) / "atlas.npz"
        np.savez(source, vertices=mesh.vertices, faces=mesh.faces)
        command = [sys.executable, str(WORKER), str(source), str(result), str(texture_size), str(PADDING_PX)]
        try:
            subprocess.run(bound(command), check=True, timeout=TIME_LIMIT_S, capture_output=True)
            with np.load(result) as atlas:
                return atlas["source"], atlas["faces"], atlas["uv"]
        except (subprocess.SubprocessError, OSError):
            return None


def _grid_atlas(mesh: TriangleMesh, texture_size: int) -> tuple[NDArray[np.int32], NDArray[np.int32], FloatArray]:
    """Every pair of faces gets a square of its own, both halves separated by padding."""
    count = len(mesh.faces)
    side = int(np.ceil(np.sqrt((count + 1) // 2)))
    cell = 1.0 / side
    gap = min(cell / 4, 1.0 / texture_size)
    cells = np.arange(count) // 2
    corner = np.stack([cells % side, cells // side], axis=1) * cell
    lower = np.array([[gap, gap], [cell - 3 * gap, gap], [gap, cell - 3 * gap]])
    upper = np.array([[cell - gap, cell - gap], [3 * gap, cell - gap], [cell - gap, 3 * gap]])
    shapes = np.where((np.arange(count) % 2 == 0)[:, None, None], lower, upper)
    uv = (corner[:, None] + shapes).reshape(-1, 2).astype(np.float32)
    return mesh.faces.reshape(-1).astype(np.int32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3), uv
