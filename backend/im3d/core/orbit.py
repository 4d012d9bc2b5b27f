"""Cameras and conventions: the one place where they are stated.

World
    Blender's axes: right-handed, Z up. The object's front faces −Y, its bounding box is centred at the origin and its
    longest side is 1.
Orbit camera
    At azimuth a, elevation e and distance r the camera stands at r·(cos e·sin a, −cos e·cos a, sin e) and looks at the
    origin. a = 0 is the input view; positive a moves the camera to its own right (counter-clockwise seen from above).
Pixels
    Square images. `fov` is the full vertical angle. The centre of pixel (row j, column i) is (i + 0.5, j + 0.5); the
    principal point is the middle of the image.
View matrices
    4×4 world → camera in OpenCV axes (x right, y down, z forward).
Images
    float32 in [0, 1], sRGB values. Straight alpha in files and in `OrbitViews`, premultiplied inside the renderer.
GLB
    Metres, +Y up (glTF), origin at the centre of the base: `orbit_from_glb` gives the matrix back to this world.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im3d.errors import InputError
from im3d.shared.names import MAX_ELEVATION_DEG

FloatArray = NDArray[np.float32]

# SV3D's camera: the paper's own is not published, and most provided orbits come from this family.
DEFAULT_FOV_DEG = 33.8
DEFAULT_RADIUS = 2.0
DEFAULT_VIEWS = 16

# glTF's Y-up axes seen from ours: x → x, z → y, −y → z.
GLTF_FROM_WORLD = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float64)


@dataclass(frozen=True)
class Cameras:
    """C pinhole cameras that share one image size.

    Attributes:
        viewmats: (C, 4, 4) float32, world → camera, OpenCV axes.
        focal: Focal length in pixels, the same in x and y.
        size: Image side in pixels.
    """

    viewmats: FloatArray
    focal: float
    size: int

    def __len__(self) -> int:
        return len(self.viewmats)

    @property
    def intrinsics(self) -> FloatArray:
        """(3, 3) float32 camera matrix K, in pixels."""
        c = self.size / 2
        return np.array([[self.focal, 0, c], [0, self.focal, c], [0, 0, 1]], dtype=np.float32)

    @property
    def centres(self) -> FloatArray:
        """(C, 3) float32 camera positions in the world."""
        R, t = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return np.ascontiguousarray(-np.einsum("cji,cj->ci", R, t), dtype=np.float32)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cameras:
        """The cameras at `index`, as `Cameras` (an integer gives one camera, C = 1)."""
        rows = [index] if isinstance(index, int) else index
        return Cameras(np.ascontiguousarray(self.viewmats[rows]), self.focal, self.size)

    def resized(self, size: int) -> Cameras:
        """The same cameras with images of another side."""
        return Cameras(self.viewmats, self.focal * size / self.size, size)

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Pixel coordinates and depth of world points.

        Args:
            points: (N, 3) world positions.

        Returns:
            (C, N, 3): x and y in pixels (pixel centres at +0.5), z the depth along the optical axis.
        """
        V = self.viewmats.astype(np.float64)
        p: NDArray[np.float64] = np.asarray(points, dtype=np.float64) @ V[:, :3, :3].swapaxes(1, 2)
        p += V[:, None, :3, 3]
        # In place: textures project a million texels for every view.
        p[..., :2] *= self.focal / p[..., 2:]
        p[..., :2] += self.size / 2
        return p


def look_at_origin(azimuth_deg: float, elevation_deg: float, radius: float) -> FloatArray:
    """View matrix of one orbit camera: (4, 4) float32, world → camera."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    centre = radius * np.array([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)])
    z = -centre / radius
    x = np.array([math.cos(a), math.sin(a), 0.0])
    y = np.cross(z, x)
    V = np.eye(4)
    V[:3, :3] = [x, y, z]
    V[:3, 3] = -V[:3, :3] @ centre
    return V.astype(np.float32)


def focal_length(fov_deg: float, size: int) -> float:
    """Focal length in pixels of a full vertical angle over `size` pixels."""
    return 0.5 * size / math.tan(math.radians(fov_deg) / 2)


def framing_radius(fov_deg: float, sphere: float) -> float:
    """Camera distance at which a sphere of radius `sphere` about the origin just touches the image border."""
    return sphere / math.sin(math.radians(fov_deg) / 2)


@dataclass(frozen=True)
class Orbit:
    """A ring of cameras about the object.

    Attributes:
        azimuths_deg: One azimuth a view, in the order of the views; the first is the input view.
        elevation_deg: Elevation shared by all views, or None when it is not known yet.
        fov_deg: Full vertical angle of view.
        radius: Distance of the cameras from the origin.
    """

    azimuths_deg: tuple[float, ...]
    elevation_deg: float | None = None
    fov_deg: float = DEFAULT_FOV_DEG
    radius: float = DEFAULT_RADIUS

    def __post_init__(self) -> None:
        numbers = [*self.azimuths_deg, self.fov_deg, self.radius]
        if self.elevation_deg is not None:
            numbers.append(self.elevation_deg)
        if not all(math.isfinite(n) for n in numbers):
            raise InputError("The orbit contains a number that is not finite.", "Correct orbit.json.")
        if len(self.azimuths_deg) < 2:
            raise InputError(f"The orbit has {len(self.azimuths_deg)} view(s).", "Bring at least two views.")
        if not 1 < self.fov_deg < 120:
            raise InputError(f"fov_deg is {self.fov_deg:g}.", "Use a vertical angle between 1° and 120°.")
        if not 0.6 < self.radius < 1000:
            raise InputError(
                f"radius is {self.radius:g}.",
                "Use a distance outside the object, whose longest side is 1: above 0.6, below 1000.",
            )
        if self.elevation_deg is not None and abs(self.elevation_deg) > MAX_ELEVATION_DEG:
            raise InputError(
                f"elevation_deg is {self.elevation_deg:g}.", f"Use a value within ±{MAX_ELEVATION_DEG:g}°."
            )

    @classmethod
    def uniform(
        cls,
        views: int = DEFAULT_VIEWS,
        elevation_deg: float | None = None,
        fov_deg: float = DEFAULT_FOV_DEG,
        radius: float = DEFAULT_RADIUS,
    ) -> Orbit:
        """K azimuths at 2πk/K, the spacing of the paper (3.2)."""
        azimuths = tuple(360.0 * k / views for k in range(views))
        return cls(azimuths, elevation_deg, fov_deg, radius)

    def __len__(self) -> int:
        return len(self.azimuths_deg)

    def cameras(self, size: int) -> Cameras:
        """The orbit's cameras for square images of `size` pixels.

        Raises:
            ValueError: The elevation is not known.
        """
        if self.elevation_deg is None:
            raise ValueError("the orbit's elevation is unknown: estimate it first")
        views = [look_at_origin(a, self.elevation_deg, self.radius) for a in self.azimuths_deg]
        return Cameras(np.stack(views), focal_length(self.fov_deg, size), size)

    def to_json(self) -> dict[str, Any]:
        """The content of `orbit.json`."""
        return {
            "azimuths_deg": list(self.azimuths_deg),
            "elevation_deg": self.elevation_deg,
            "fov_deg": self.fov_deg,
            "radius": self.radius,
        }

    @classmethod
    def from_json(cls, data: Any, views: int | None = None) -> Orbit:
        """An orbit from the content of `orbit.json`; missing entries take their defaults.

        Args:
            data: The decoded JSON.
            views: Number of views it must describe; needed when `azimuths_deg` is absent.

        Raises:
            InputError: A value is of the wrong type, not finite, out of range, or the count does not match.
        """
        if not isinstance(data, dict):
            raise InputError(
                "orbit.json does not hold an object.",
                "Write an object with azimuths_deg, elevation_deg, fov_deg and radius.",
            )
        _check_names(data)
        azimuths = data.get("azimuths_deg")
        if azimuths is None:
            if views is None:
                raise InputError("orbit.json has no azimuths_deg.", "List one azimuth for each view.")
            values = tuple(360.0 * k / views for k in range(views))
        elif isinstance(azimuths, list):
            values = tuple(_number(a) for a in azimuths)
            _check_degrees(values)
        else:
            raise InputError("azimuths_deg in orbit.json is not a list.", "List one azimuth for each view.")
        elevation = data.get("elevation_deg")
        elevation = None if elevation is None else _number(elevation)
        fov = _number(data.get("fov_deg", DEFAULT_FOV_DEG))
        radius = _number(data.get("radius", DEFAULT_RADIUS))
        if views is not None and len(values) != views:
            raise InputError(
                f"orbit.json lists {len(values)} azimuths for {views} views.",
                "List one azimuth for each view.",
            )
        return cls(values, elevation, fov, radius)

    @classmethod
    def load(cls, path: Path, views: int | None = None) -> Orbit:
        """Reads `orbit.json`.

        Raises:
            InputError: The file is not JSON or does not describe an orbit of `views` views.
        """
        try:
            # Windows' editors and shells put a byte order mark before UTF-8.
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON.", "Correct or remove orbit.json.") from error
        return cls.from_json(data, views)


_NAMES = ("azimuths_deg", "elevation_deg", "fov_deg", "radius")


def _check_names(data: dict[str, Any]) -> None:
    """Refuses entries that would be ignored: they are misspelt, and the orbit would silently be another one."""
    for name in data:
        if name not in _NAMES:
            close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.5)
            raise InputError(
                f'orbit.json has no entry named "{name[:40]}".',
                f"Write {close[0]}." if close else f"It knows {', '.join(_NAMES[:-1])} and {_NAMES[-1]}.",
            )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("orbit.json holds a value that is not a number.", "Correct orbit.json.")
    try:
        return float(value)
    except OverflowError as error:  # an integer of hundreds of digits
        raise InputError("orbit.json holds a number that is too large.", "Correct orbit.json.") from error


def _check_degrees(azimuths_deg: Sequence[float]) -> None:
    """Refuses azimuths that lie within 2π degrees: radians, or cameras that all stand in one place."""
    if len(azimuths_deg) > 2 and max(azimuths_deg) - min(azimuths_deg) <= 2 * math.pi:
        raise InputError(
            f"The azimuths in orbit.json span only {max(azimuths_deg) - min(azimuths_deg):.2g} degrees.",
            "Write them in degrees, not radians, for views from all around the object.",
        )


def orbit_from_glb(metres_per_unit: float, base_centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (4, 4) matrix from GLB coordinates to this world (`orbit_from_glb` in result.json).

    Args:
        metres_per_unit: Metres of the exported object per unit of this world.
        base_centre: (3,) world point that became the GLB's origin.
    """
    M = np.eye(4)
    M[:3, :3] = GLTF_FROM_WORLD.T / metres_per_unit
    M[:3, 3] = base_centre
    return M
