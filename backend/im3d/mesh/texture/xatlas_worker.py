"""Runs xatlas on a mesh in a file; started by `unwrap` as a process of its own, with nothing else to import.

python xatlas_worker.py MESH.npz ATLAS.npz TEXTURE_SIZE PADDING
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import xatlas
from numpy.typing import NDArray

# The mesh is cut into pieces of about so many faces. xatlas grows the charts of one mesh on one core, in a time that
# rises faster than its faces: 20 000 in eight pieces take a quarter of the time (and their atlas 2 % more of its side).
PIECE_FACES = 2500


def pieces(centres: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Rows of the faces of each piece: halves across the longest side, until they are small enough.

    Args:
        centres: (F, 3) of the faces.
    """
    found: list[NDArray[np.intp]] = []
    waiting = [np.arange(len(centres))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= 1.5 * PIECE_FACES:
            found.append(rows)
            continue
        axis = np.ptp(centres[rows], axis=0).argmax()
        order = rows[np.argsort(centres[rows, axis], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]
    return found


def main(source: str, result: str, texture_size: int, padding: int) -> None:
    with np.load(source) as data:
        vertices, faces = data["vertices"], data["faces"].astype(np.uint32)
    atlas = xatlas.Atlas()
    parts = pieces(vertices[faces].mean(axis=1))
    corners = [np.unique(faces[rows], return_inverse=True) for rows in parts]
    for used, index in corners:
        atlas.add_mesh(vertices[used], index.reshape(-1, 3).astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution = texture_size
    options.padding = padding
    options.bilinear = True
    atlas.generate(xatlas.ChartOptions(), options)
    if atlas.atlas_count == 1:
        charts = [atlas[k] for k in range(len(parts))]
        mapping = np.concatenate([used[chart[0]] for (used, _), chart in zip(corners, charts, strict=True)])
        first = np.cumsum([0, *(len(chart[0]) for chart in charts)])
        indices = np.empty_like(faces)
        for rows, chart, start in zip(parts, charts, first[:-1], strict=True):
            indices[rows] = chart[1] + start
        uv = np.concatenate([chart[2] for chart in charts])
    else:  # the charts did not fit one page: let xatlas choose the texel size
        mapping, indices, uv = xatlas.parametrize(vertices, faces)
    np.savez(result, source=mapping.astype(np.int32), faces=indices.astype(np.int32), uv=uv.astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
