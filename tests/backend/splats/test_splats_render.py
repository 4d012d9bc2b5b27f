"""The CPU rasteriser against a dense torch reference, and its determinism."""

from __future__ import annotations

import dataclasses
import math

import numba
import numpy as np
import pytest
import torch
from splat_scenes import dense_render, project, random_gaussians
from torch import Tensor

from im3d.core.orbit import Cameras, Orbit
from im3d.errors import InputError
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers import (
    rasterize_gsplat,
    rasterize_numba,
    rasterize_warp,
)
from im3d.splats.rasterizers.project import MIN_ALPHA, Projected
from im3d.splats.rasterizers.project_numba import project_fused
from im3d.splats.rasterizers.rasterize_numba import TILE, bin_tiles
from im3d.splats.render import best_rasterizer, blending_weights, render

FIELDS = ("means", "quats", "scales", "opacities", "colors")


def cameras(size: int, count: int = 1) -> Cameras:
    return Orbit.uniform(max(count, 2), 20.0, 40.0, 2.0).cameras(size)[list(range(count))]


def gradients(gaussians: Gaussians, rgb: Tensor, alpha: Tensor) -> list[Tensor]:
    """Of a loss that weights every pixel and channel differently."""
    generator = torch.Generator().manual_seed(5)
    loss = (rgb * torch.randn(rgb.shape, generator=generator)).sum()
    loss = loss + (alpha * torch.randn(alpha.shape, generator=generator)).sum()
    return list(torch.autograd.grad(loss, [getattr(gaussians, name) for name in FIELDS]))


@pytest.mark.parametrize(("count", "size", "spread"), [(300, 70, 0.04), (2000, 64, 0.02), (40, 48, 0.3)])
def test_images_and_gradients_equal_a_dense_reference(count: int, size: int, spread: float) -> None:
    gaussians = random_gaussians(count, spread, seed=count)
    camera = cameras(size)
    drawn = render(gaussians, camera, "cpu")
    rgb, alpha = dense_render(gaussians, camera)
    assert (drawn.rgb[0] - rgb).abs().max() < 2e-6
    assert (drawn.alpha[0] - alpha).abs().max() < 2e-6
    mine, reference = gradients(gaussians, drawn.rgb[0], drawn.alpha[0]), gradients(gaussians, rgb, alpha)
    for name, a, b in zip(FIELDS, mine, reference, strict=True):
        assert (a - b).norm() / b.norm() < 1e-5, name


def test_the_fused_projection_equals_the_plain_one() -> None:
    """Also outside the cone of view, where the linearisation is clamped, and behind the camera."""
    inside = random_gaussians(600, 0.05, seed=3)
    means = torch.cat([inside.means.detach(), 6 * torch.randn(600, 3, generator=torch.Generator().manual_seed(1))])
    others = [torch.cat([getattr(inside, name).detach()] * 2) for name in FIELDS[1:]]
    leaves = [t.clone().requires_grad_(True) for t in (means, *others)]
    gaussians = Gaussians(**dict(zip(FIELDS, leaves, strict=True)))
    camera = cameras(96, 2)
    plain, fused = project(gaussians, camera, 1), project_fused(gaussians, camera, 1)
    assert 0.05 < plain.visible.float().mean() < 0.95
    assert torch.equal(plain.visible, fused.visible)
    # A position near the picture's edge is a small difference of numbers near 48 pixels, whose last bit is 4e-6.
    for name, atol in (("means2d", 8e-6), ("conics", 1e-6), ("depths", 1e-6), ("extents", 1e-6)):
        torch.testing.assert_close(getattr(plain, name), getattr(fused, name), rtol=3e-5, atol=atol)

    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(1200, 2, generator=generator), torch.randn(1200, 3, generator=generator)
    near = plain.depths > 0.05

    def shape_gradients(p: Projected) -> list[Tensor]:
        loss = ((p.means2d * weights[0]).sum(dim=1) + (p.conics * weights[1]).sum(dim=1))[near].sum()
        return list(torch.autograd.grad(loss, leaves[:3]))

    for name, a, b in zip(FIELDS, shape_gradients(plain), shape_gradients(fused), strict=False):
        assert (a - b).norm() / a.norm() < 1e-5, name


def test_a_tilt_raises_the_camera_and_has_the_gradient_of_doing_so() -> None:
    gaussians = random_gaussians(300, 0.2, seed=1).detach()
    low, high = (Orbit.uniform(16, e, 40.0, 2.0).cameras(128) for e in (20.0, 23.0))
    raised = project_fused(gaussians, low, 5, torch.tensor(math.radians(3.0)))
    plain = project(gaussians, high, 5)
    torch.testing.assert_close(raised.means2d, plain.means2d, rtol=0, atol=1e-4)
    torch.testing.assert_close(raised.conics, plain.conics, rtol=1e-4, atol=1e-6)

    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(300, 2, generator=generator).double(), 50 * torch.randn(300, 3, generator=generator).double()

    def loss(tilt: Tensor) -> Tensor:
        p = project_fused(gaussians, low, 5, tilt)
        return (p.means2d.double() * weights[0]).sum() + (p.conics.double() * weights[1]).sum()

    tilt = torch.tensor(0.01, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(tilt), tilt)
    numeric = (loss(torch.tensor(0.012)) - loss(torch.tensor(0.008))) / 0.004
    assert float(gradient) == pytest.approx(float(numeric), rel=1e-3)


def test_splats_at_one_depth_keep_their_order() -> None:
    gaussians = random_gaussians(3000, 0.05, seed=9).detach()
    projected = project(gaussians, cameras(64))
    rounded = dataclasses.replace(projected, depths=(projected.depths * 20).round() / 20)
    tiles = bin_tiles(rounded, 64)
    rank = np.empty(3000, int)
    rank[np.argsort(rounded.depths.numpy(), kind="stable")] = np.arange(3000)
    for first, end in zip(tiles.offsets[:-1], tiles.offsets[1:], strict=True):
        assert (np.diff(rank[tiles.splats[first:end]]) > 0).all()


def test_the_image_is_the_closed_form_of_one_gaussian() -> None:
    """A ball of standard deviation s at the origin: alpha = o·exp(−d²/2σ²) with σ² = (f·s/r)² + 0.3 pixels²."""
    size, s, opacity = 65, 0.05, 0.8
    ball = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), s),
        torch.tensor([opacity]),
        torch.tensor([[1.0, 0.5, 0.0]]),
    )
    camera = cameras(size)
    drawn = render(ball, camera, "cpu")
    sigma2 = (camera.focal * s / 2.0) ** 2 + 0.3
    d2 = (np.arange(size) + 0.5 - size / 2) ** 2
    expected = opacity * np.exp(-(d2[:, None] + d2[None]) / (2 * sigma2))
    expected[expected < MIN_ALPHA] = 0
    np.testing.assert_allclose(drawn.alpha[0].numpy(), expected, atol=3e-6)
    np.testing.assert_allclose(drawn.rgb[0, ..., 1].numpy(), 0.5 * expected, atol=3e-6)


def test_one_and_two_threads_give_the_same_bits() -> None:
    gaussians = random_gaussians(3000, 0.02, seed=1)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            drawn = render(gaussians, cameras(96), "cpu")
            results.append([drawn.rgb.detach(), *gradients(gaussians, drawn.rgb, drawn.alpha)])
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_tiles_hold_exactly_the_splats_that_reach_them_near_to_far() -> None:
    gaussians = random_gaussians(500, 0.05, seed=2).detach()
    size = 72  # the last row and column of tiles are half outside
    projected = project(gaussians, cameras(size))
    tiles = bin_tiles(projected, size)
    low, high = projected.means2d - projected.extents, projected.means2d + projected.extents
    for t in range(tiles.per_side**2):
        corner = torch.tensor([t % tiles.per_side, t // tiles.per_side]) * TILE
        reached = ((high >= corner) & (low < corner + TILE)).all(dim=1) & projected.visible
        mine = tiles.splats[tiles.offsets[t] : tiles.offsets[t + 1]]
        assert sorted(mine.tolist()) == torch.nonzero(reached)[:, 0].tolist()
        assert (np.diff(projected.depths.numpy()[mine]) >= 0).all()


def test_an_opaque_front_hides_everything_behind_it() -> None:
    """Also past the point where a tile stops early."""
    front = random_gaussians(400, 0.2, seed=3).detach()
    camera = cameras(48)
    towards = torch.from_numpy(camera.centres[0]) / 2.0
    front = Gaussians(
        front.means * 0.05 + 0.6 * towards, front.quats, front.scales, torch.full((400,), 0.99), front.colors
    )
    back = random_gaussians(200, 0.1, seed=4).detach()
    both = Gaussians(*(torch.cat([getattr(front, f), getattr(back, f)]) for f in FIELDS))
    middle = slice(20, 28)
    a, b = (render(g, camera, "cpu").rgb[0, middle, middle] for g in (front, both))
    assert (a - b).abs().max() < 2e-4


def test_splats_behind_the_camera_or_outside_the_picture_are_not_drawn() -> None:
    gaussians = random_gaussians(50, 0.02, seed=6).detach()
    camera = cameras(48)
    behind = dataclasses.replace(gaussians, means=gaussians.means + 1.5 * torch.from_numpy(camera.centres[0]))
    assert not render(behind, camera, "cpu").visible.any()
    assert float(render(behind, camera, "cpu").alpha.max()) == 0


def test_blending_weights_sum_to_the_coverage() -> None:
    gaussians = random_gaussians(200, 0.05, seed=7).detach()
    views = cameras(64, 3)
    weights = blending_weights(gaussians, views, "cpu")
    coverage = render(gaussians, views, "cpu").alpha.sum(dim=(1, 2))
    torch.testing.assert_close(weights.sum(dim=1), coverage, rtol=1e-5, atol=1e-3)


def test_compositing_over_a_background() -> None:
    drawn = render(random_gaussians(100, 0.05, seed=8).detach(), cameras(48), "cpu")
    colour = torch.tensor([0.2, 0.4, 0.9])
    expected = drawn.rgb + (1 - drawn.alpha)[..., None] * colour
    torch.testing.assert_close(drawn.over(colour), expected)
    assert math.isclose(float(drawn.over(1.0)[0, 0, 0, 0]), 1.0, abs_tol=1e-6)


def test_a_device_without_a_rasteriser_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_rasterizer(torch.device("cpu")) == "cpu"
    monkeypatch.setattr(rasterize_gsplat, "unavailable_reason", lambda: "gsplat is not compiled, and there is no nvcc.")
    monkeypatch.setattr(rasterize_warp, "unavailable_reason", lambda device_type: "There is no Warp.")
    with pytest.raises(InputError, match="no nvcc") as caught:
        best_rasterizer(torch.device("cuda"))
    assert "device cpu" in caught.value.hint


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_tiles_evenly(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterize_numba, "get_num_threads", lambda: threads)
    work = np.random.default_rng(0).pareto(1.5, 200).astype(np.int64)
    order = rasterize_numba.balanced(work)
    assert sorted(order) == list(range(200))
    shares = [work[run].sum() for run in np.array_split(order, threads)]
    assert max(shares) - min(shares) <= work.max()
