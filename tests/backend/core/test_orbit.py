"""Cameras and conventions against hand-computed cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from im3d.core.orbit import Orbit, focal_length, framing_radius, look_at_origin, orbit_from_glb
from im3d.errors import InputError


def test_input_camera_stands_in_front_and_sees_right_as_right() -> None:
    cameras = Orbit((0.0, 90.0), 0.0, 90.0, 2.0).cameras(100)
    assert np.allclose(cameras.centres, [[0, -2, 0], [2, 0, 0]], atol=1e-6)
    # fov 90° over 100 pixels: f = 50. A point .5 to the right and .25 up at depth 2 lies at (62.5, 43.75).
    assert np.allclose(cameras.project(np.array([[0.5, 0, 0.25]]))[0, 0], [62.5, 43.75, 2.0])
    # Seen from +X, the object's back (+Y) is on the right.
    assert np.allclose(cameras.project(np.array([[0, 0.5, 0]]))[1, 0], [62.5, 50.0, 2.0])


def test_elevated_camera_looks_down() -> None:
    V = look_at_origin(0, 30, 2)
    centre = -V[:3, :3].T @ V[:3, 3]
    assert np.allclose(centre, [0, -2 * math.cos(math.pi / 6), 1], atol=1e-6)
    x, y, depth = Orbit((0, 180), 30.0, 90.0).cameras(100).project(np.array([[0, 0, 0.5]]))[0, 0]
    # Up the axis by h: v = −f·h·cos e / (r − h·sin e).
    assert (x, y, depth) == pytest.approx((50, 50 - 50 * 0.5 * math.cos(math.pi / 6) / 1.75, 1.75), abs=1e-5)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (123, 44), (-70, -60), (359, 80)])
def test_view_matrices_are_rigid(azimuth: float, elevation: float) -> None:
    V = look_at_origin(azimuth, elevation, 3.0)
    assert np.allclose(V[:3, :3] @ V[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(V[:3, :3]) == pytest.approx(1, abs=1e-6)
    assert np.allclose(V @ [0, 0, 0, 1], [0, 0, 3, 1], atol=1e-6)


def test_resized_cameras_see_the_same() -> None:
    cameras = Orbit.uniform(5, 20.0).cameras(64)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))
    assert np.allclose(cameras.resized(160).project(points)[..., :2], cameras.project(points)[..., :2] * 2.5)
    assert cameras.intrinsics[0, 2] == 32
    assert len(cameras[1:3]) == 2
    assert np.array_equal(cameras[3].viewmats[0], cameras.viewmats[3])


def test_framing_radius_touches_the_border() -> None:
    r = framing_radius(33.8, 0.5)
    # The tangent from the camera to the sphere is the edge of the view.
    assert math.degrees(math.asin(0.5 / r)) * 2 == pytest.approx(33.8)
    assert focal_length(90, 100) == pytest.approx(50)


def test_json_round_trip(tmp_path: Path) -> None:
    orbit = Orbit((0.0, 10.5, 200.0), 12.25, 40.0, 2.5)
    path = tmp_path / "orbit.json"
    path.write_text(json.dumps(orbit.to_json()))
    assert Orbit.load(path, 3) == orbit
    assert Orbit.from_json({}, 4) == Orbit.uniform(4)


@pytest.mark.parametrize(
    "text",
    [
        '{"azimuths_deg": [0, NaN, 90]}',
        '{"elevation_deg": NaN}',
        '{"radius": Infinity}',
        '{"radius": 0.1}',
        '{"fov_deg": 0}',
        '{"fov_deg": "wide"}',
        '{"elevation_deg": 89}',
        '{"azimuths_deg": [0, 90]}',
        '{"azimuths_deg": [0, 90, [1]]}',
        '{"azimuths_deg": [0, 2.0944, 4.18879]}',
        '{"azimuths_deg": [0, 0, 0]}',
        '{"azimuths_deg": "012"}',
        '{"elevation_deg": true}',
        '{"radius": ' + "9" * 400 + "}",
        '{"radius": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "[1, 2, 3]",
        "{",
        "\xff\xfe",
    ],
)
def test_bad_orbit_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "orbit.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as error:
        Orbit.load(path, 3)
    assert error.value.exit_status == 2
    assert error.value.hint


@pytest.mark.parametrize(
    ("written", "meant"),
    [("azimuth_deg", "azimuths_deg"), ("elevation", "elevation_deg"), ("FOV_deg", "fov_deg"), ("radious", "radius")],
)
def test_a_misspelt_entry_is_refused_with_the_right_name(written: str, meant: str) -> None:
    with pytest.raises(InputError) as error:
        Orbit.from_json({written: 15}, 3)
    assert written in error.value.message
    assert meant in error.value.hint


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "orbit.json"
    path.write_bytes(b'\xef\xbb\xbf{"elevation_deg": 15}')
    assert Orbit.load(path, 3).elevation_deg == 15


def test_unknown_elevation_has_no_cameras() -> None:
    with pytest.raises(ValueError, match="unknown"):
        Orbit.uniform(3).cameras(32)


def test_glb_origin_and_axes_return_to_the_world() -> None:
    M = orbit_from_glb(2.0, np.array([0.0, 0.0, -0.5]))
    # One metre up in the GLB (+Y) is half a unit up the world's Z, from the base.
    assert np.allclose(M @ [0, 1, 0, 1], [0, 0, 0, 1])
    # glTF's front is +Z, the world's −Y.
    assert np.allclose(M @ [0, 0, 1, 1], [0, -0.5, -0.5, 1])
