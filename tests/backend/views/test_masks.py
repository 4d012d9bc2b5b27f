"""Cutting out: white on white, holes, highlights, soft shadows, translucent things, several things, views of a set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from im3d.core.images import FloatArray
from im3d.core.orbit import Orbit
from im3d.errors import InputError
from im3d.views.masks import Isolated, isolate, several_objects
from im3d.views.view_masks import common_warnings, isolate_views

SIZE = 192
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def disc(x: float = 96, y: float = 96, r: float = 50) -> FloatArray:
    """Coverage of a disc, (192, 192) in [0, 1]."""
    return np.clip(r - np.hypot(X - x, Y - y) + 0.5, 0, 1).astype(np.float32)


def on_ground(
    alpha: FloatArray, colour: FloatArray, ground: FloatArray | float = 1.0, noise: float = 0.0
) -> FloatArray:
    """An opaque picture, 8 bits, of something before a ground."""
    below = np.broadcast_to(np.asarray(ground, np.float32), alpha.shape)[..., None]
    rgb = colour * alpha[..., None] + below * (1 - alpha[..., None])
    rgb = rgb + noise * np.random.default_rng(0).standard_normal(rgb.shape)
    return np.dstack([np.clip(np.round(255 * rgb), 0, 255) / 255, np.ones_like(alpha)]).astype(np.float32)


def flat(r: float, g: float, b: float) -> FloatArray:
    return np.broadcast_to(np.float32([r, g, b]), (SIZE, SIZE, 3))


def agreement(cut: Isolated, truth: FloatArray) -> float:
    a, b = cut.rgba[..., 3] > 0.5, truth > 0.5
    return float((a & b).sum() / (a | b).sum())


def snowball() -> FloatArray:
    """A white ball, shaded by a few levels at its outline and pure white in the middle, (192, 192, 3)."""
    shade = 1 - 0.06 * np.clip(np.hypot(X - 96, Y - 96) / 50, 0, 1) ** 4
    return np.repeat(shade[..., None], 3, axis=-1).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_white_on_white_is_whole(noise: float) -> None:
    cut = isolate(on_ground(disc(), snowball(), noise=noise))
    assert agreement(cut, disc()) > 0.97
    assert (cut.rgba[70:122, 70:122, 3] == 1).all()


def test_a_gap_in_a_faint_outline_lets_nothing_out() -> None:
    colour = snowball().copy()
    colour[92:96, :60] = 1  # the outline is lost to white over four pixels
    cut = isolate(on_ground(disc(), colour))
    assert agreement(cut, disc()) > 0.96


def test_a_hole_is_seen_through_and_a_highlight_is_not() -> None:
    ring = disc() - disc(r=20)
    assert agreement(isolate(on_ground(ring, flat(0.2, 0.3, 0.6))), ring) > 0.98
    glint = 0.8 * np.exp(-((np.hypot(X - 90, Y - 90) / 14) ** 2))[..., None] + flat(0.2, 0.3, 0.6)
    assert agreement(isolate(on_ground(disc(), np.clip(glint, 0, 1))), disc()) > 0.98


@pytest.mark.parametrize("depth", [0.1, 0.2, 0.25])
def test_a_soft_shadow_on_the_ground_is_not_object(depth: float) -> None:
    box = ((abs(X - 96) < 40) & (abs(Y - 85) < 55)).astype(np.float32)
    ground = 1 - depth * np.exp(-(((X - 100) / 44) ** 2 + ((Y - 150) / 22) ** 2))
    for tint in (flat(0.6, 0.3, 0.2), flat(0.4, 0.4, 0.4)):
        assert agreement(isolate(on_ground(box, tint, ground)), box) > 0.97


def test_glass_becomes_solid_and_says_so() -> None:
    cut = isolate(np.dstack([flat(0.5, 0.7, 0.9), 0.35 * disc()]).astype(np.float32))
    assert agreement(cut, disc()) > 0.98
    assert any("translucent" in w for w in cut.warnings)
    # A faint shadow beside something solid stays as it is.
    solid = np.dstack([flat(0.5, 0.7, 0.9), np.maximum(disc(), 0.3 * disc(120, 150, 30))]).astype(np.float32)
    assert agreement(isolate(solid), disc()) > 0.98


def test_round_corners_of_a_screenshot_do_not_hide_its_plain_background() -> None:
    picture = on_ground(disc(), flat(0.7, 0.2, 0.2))
    picture[:6, :6] = picture[:6, -6:] = 0
    cut = isolate(picture)
    assert cut.method == "plain background"
    assert agreement(cut, disc()) > 0.98


def test_several_objects_and_letters_are_said() -> None:
    assert several_objects(disc()) == ()
    assert several_objects(np.maximum(disc(r=30), disc(150, 150, 6))) == ()
    assert "2 separate objects" in several_objects(np.maximum(disc(50, 96, 30), disc(140, 96, 28)))[0]
    word = np.max([disc(14 + 20 * k, 96, 5 + k % 3) for k in range(9)], axis=0)
    assert "letters" in several_objects(word)[0]


def test_what_cannot_be_cut_out_names_the_remedy() -> None:
    noisy = np.random.default_rng(0).random((64, 64, 4)).astype(np.float32)
    noisy[..., 3] = 1
    with pytest.raises(InputError, match="cannot be separated") as error:
        isolate(noisy)
    assert error.value.remedy == "download isnet"
    with pytest.raises(InputError, match="No object found"):
        isolate(np.ones((64, 64, 4), np.float32))


def test_background_and_network_both_speak() -> None:
    truth = np.maximum(disc(), disc(150, 96, 20))
    picture = on_ground(truth, flat(0.2, 0.3, 0.6))
    picture[80:112, 80:112, :3] = 1  # paint as white as the ground, hard edges and all
    # The network forgets the small disc and is unsure of a stripe, but knows the paint.
    network = np.where(abs(Y - 60) < 6, 0.3, 1) * disc()
    cut = isolate(picture, segment=lambda _: network.astype(np.float32))
    assert cut.method == "plain background"
    assert agreement(cut, truth) > 0.98


def test_a_networks_soft_values_become_decisions_but_for_the_rim() -> None:
    noisy = np.random.default_rng(0).random((SIZE, SIZE, 4)).astype(np.float32)
    noisy[..., 3] = 1
    network = np.clip(disc() * np.where(abs(Y - 96) < 10, 0.4, 0.8), 0, 1).astype(np.float32)
    network[96, 60] = 0.8
    cut = isolate(noisy, segment=lambda _: np.where((abs(Y - 96) < 10) & (abs(X - 96) > 40), 0.8, 1) * network)
    assert cut.method == "segmentation"
    alpha = cut.rgba[..., 3]
    assert (alpha[60:80, 80:110] == 1).all()
    assert ((alpha == 0) | (alpha == 1)).mean() > 0.9


def ball_views(paint: Callable[[int], FloatArray]) -> list[FloatArray]:
    return [on_ground(disc(), paint(k)) for k in range(12)]


def test_white_paint_that_one_view_sees_is_no_hole_where_others_look_at_the_object() -> None:
    painted = flat(0.2, 0.3, 0.6).copy()
    painted[76:116, 76:116] = 1
    alone = isolate(on_ground(disc(), painted))
    assert alone.rgba[96, 96, 3] == 0  # a picture alone takes it for a hole
    views = isolate_views(ball_views(lambda k: painted if k == 3 else flat(0.2, 0.3, 0.6)), Orbit.uniform(12, 0.0))
    assert min(agreement(view, disc()) for view in views) > 0.97


def test_warnings_of_a_set_are_said_once() -> None:
    cut = np.zeros((8, 8, 4), np.float32)
    touching = Isolated(cut, "alpha", ("The object touches the top of the picture and may be cut off.",))
    glass = Isolated(cut, "alpha", ("The object is translucent in the picture; it becomes solid.",))
    assert common_warnings([touching, glass, glass]) == (
        "In 1 of 3 views the object touches the border and may be cut off.",
        glass.warnings[0],
    )


def test_the_view_that_fails_is_named() -> None:
    views = ball_views(lambda _: flat(0.2, 0.3, 0.6))
    views[5] = np.ones_like(views[5])
    with pytest.raises(InputError, match="View 5: No object"):
        isolate_views(views, Orbit.uniform(12))
