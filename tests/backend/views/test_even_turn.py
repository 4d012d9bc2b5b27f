"""Views that are not one even turn are said."""

import numpy as np
import pytest

from im3d.core.images import OrbitViews
from im3d.core.orbit import Orbit
from im3d.views.elevation import estimate_orbit

BALLS = np.array([[0.3, 0.0, -0.2], [-0.25, 0.2, 0.1], [0.0, -0.3, 0.3]])


def views(azimuths: list[float]) -> OrbitViews:
    """Three balls seen from 15 degrees above, said to be one even turn."""
    y, x = np.mgrid[:96, :96] + 0.5
    seen = Orbit(tuple(azimuths), 15.0).cameras(96)
    rgba = np.zeros((len(azimuths), 96, 96, 4), np.float32)
    for k, balls in enumerate(seen.project(BALLS)):
        for colour, (u, v, depth) in enumerate(balls):
            inside = np.hypot(x - u, y - v) < 0.18 * seen.focal / depth
            rgba[k, inside, :] = (0.2, 0.2, 0.2, 1)
            rgba[k, inside, colour] = 0.9
    return OrbitViews(rgba, Orbit.uniform(len(azimuths)))


@pytest.mark.parametrize("turn", [360.0, -360.0])
def test_an_even_turn_is_not_warned_of(turn: float) -> None:
    assert estimate_orbit(views([turn * k / 16 for k in range(16)])).warnings == ()


@pytest.mark.parametrize(
    "azimuths",
    [
        [180.0 * k / 16 for k in range(16)],
        [max(0.0, 22.5 * (k - 5) * 1.6) for k in range(16)],
    ],
    ids=["half a turn", "still, then a turn"],
)
def test_what_is_not_one_even_turn_is_said(azimuths: list[float]) -> None:
    assert "even turn" in estimate_orbit(views(azimuths)).warnings[0]
