"""Runs xatlas on a mesh in a file; started by `unwrap` as a process of its own, with nothing else to import.

python xatlas_worker.py MESH.npz ATLAS.npz TEXTURE_SIZE PADDING
"""

from __future__ import annotations

import sys

import numpy as np
import xatlas


def main(source: str, result: str, texture_size: int, padding: int) -> None:
    with np.load(source) as data:
        vertices, faces = data["vertices"], data["faces"].astype(np.uint32)
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    options = xatlas.PackOptions()
    options.resolution = texture_size
    options.padding = padding
    options.bilinear = True
    atlas.generate(xatlas.ChartOptions(), options)
    mapping, indices, uv = atlas[0]
    if atlas.atlas_count != 1:  # the charts did not fit one page: let xatlas choose the texel size
        mapping, indices, uv = xatlas.parametrize(vertices, faces)
    np.savez(result, source=mapping.astype(np.int32), faces=indices.astype(np.int32), uv=uv.astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
