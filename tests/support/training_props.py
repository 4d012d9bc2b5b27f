"""Props of a few faces for the training data's tests."""

from __future__ import annotations

import numpy as np

from im3d_lab.packs import Part

SIDES = {"left": (0, -1), "right": (0, 1), "below": (1, -1), "above": (1, 1), "back": (2, -1), "front": (2, 1)}


def box(*missing: str, color: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> Part:
    """A cube in glTF's axes without some of its sides."""
    vertices, faces = [], []
    for axis, sign in (SIDES[name] for name in SIDES if name not in missing):
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
        faces += [[len(vertices) + i for i in f] for f in ((0, 1, 2), (0, 2, 3))]
        vertices += np.insert(corners, axis, sign * 0.5, axis=1).tolist()
    return Part(np.array(vertices, np.float32), np.array(faces, np.int32), None, color, None, False, 1.0)
