"""Gaussians as the PLY file that 3D Gaussian splat viewers read (the layout of Kerbl et al. 2023, SH degree 0).

Positions are in this project's world (Z up, front −Y); colours are stored as the constant spherical harmonic,
opacities as logits, scales as logarithms, rotations as wxyz.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from im3d.core.storage import write_bytes
from im3d.errors import InputError
from im3d.splats.gaussians import Gaussians

SH0 = 0.5 / math.sqrt(math.pi)  # the constant spherical harmonic
FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def save_ply(path: Path, gaussians: Gaussians) -> None:
    """Writes N Gaussians atomically as a binary little-endian PLY, float32."""
    g = gaussians.detach().to("cpu")
    columns = [
        g.means,
        torch.zeros_like(g.means),
        (g.colors - 0.5) / SH0,
        torch.logit(g.opacities.clamp(1e-6, 1 - 1e-6))[:, None],
        g.scales.log(),
        torch.nn.functional.normalize(g.quats, dim=1),
    ]
    table = torch.cat(columns, dim=1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", "comment IM-3D: Z up, front -Y", f"element vertex {len(table)}"]
    header += [f"property float {name}" for name in FIELDS] + ["end_header", ""]
    write_bytes(path, "\n".join(header).encode() + table.tobytes())


def load_ply(path: Path) -> Gaussians:
    """Reads what `save_ply` or another 3DGS program wrote; higher harmonics are ignored.

    Raises:
        InputError: Missing, not a binary little-endian 3DGS PLY, or it ends early.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} does not exist or cannot be read.", "Check the path.") from error
    end = data.find(b"end_header\n")
    if not data.startswith(b"ply\n") or end < 0 or b"format binary_little_endian 1.0" not in data[:end]:
        raise InputError(f"{path} is not a binary little-endian PLY file.", "Export it again as 3DGS PLY.")
    lines = [line.split() for line in data[:end].decode("ascii", "replace").splitlines()]
    names = [line[2] for line in lines if line[:2] == ["property", "float"]]
    counts = [int(line[2]) for line in lines if line[:2] == ["element", "vertex"] and line[2].isdecimal()]
    missing = set(FIELDS) - {"nx", "ny", "nz"} - set(names)
    if missing or len(counts) != 1 or len(names) != sum(line[0] == "property" for line in lines if line):
        raise InputError(f"{path} does not hold Gaussians.", "A 3DGS PLY has float properties x … rot_3.")
    body = data[end + len(b"end_header\n") :]
    if len(body) < counts[0] * len(names) * 4:
        raise InputError(f"{path} ends before its last Gaussian.", "Copy or export it again.")
    table = np.frombuffer(body, "<f4", counts[0] * len(names)).reshape(counts[0], len(names)).astype(np.float32)

    def columns(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(table[:, [names.index(w) for w in wanted]]))

    return Gaussians(
        means=columns("x", "y", "z"),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
        scales=columns("scale_0", "scale_1", "scale_2").exp(),
        opacities=torch.sigmoid(columns("opacity")[:, 0]),
        colors=(columns("f_dc_0", "f_dc_1", "f_dc_2") * SH0 + 0.5).clamp(0, 1),
    )
