"""The projection of `Cameras.project` for numba's loops: one point, inlined where it is called.

Numba's caches do not notice a change here: delete the callers' __pycache__ after one.
"""

from __future__ import annotations

from numba import njit


@njit(inline="always")
def camera_point(V, x, y, z):  # type: ignore[no-untyped-def]
    """A world point in the axes of a camera (x right, y down, z forward), whose view matrix V is (4, 4)."""
    return (
        V[0, 0] * x + V[0, 1] * y + V[0, 2] * z + V[0, 3],
        V[1, 0] * x + V[1, 1] * y + V[1, 2] * z + V[1, 3],
        V[2, 0] * x + V[2, 1] * y + V[2, 2] * z + V[2, 3],
    )


@njit(inline="always")
def project_point(V, focal, half, x, y, z):  # type: ignore[no-untyped-def]
    """Pixel coordinates (centres at +0.5) and depth of a world point.

    Pixels of points that are not in front of the camera mean nothing, and are infinite at depth 0, so that the caller
    needs `error_model="numpy"` where those may occur.

    Args:
        V: (4, 4) view matrix.
        focal: Pixels.
        half: Half of the image side, in pixels.
        x, y, z: World position.
    """
    right, down, depth = camera_point(V, x, y, z)
    return focal * right / depth + half, focal * down / depth + half, depth
