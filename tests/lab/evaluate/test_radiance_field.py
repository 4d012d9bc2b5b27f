"""The radiance field of Table 2: encoding and rendering against closed forms, and a fit of a known object."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from im3d.core.images import OrbitViews, over
from im3d.core.orbit import Cameras, Orbit
from im3d.settings import FitSettings
from im3d_lab.evaluate.metrics import mask_iou, psnr
from im3d_lab.evaluate.radiance_field import (
    PRIMES,
    FieldSettings,
    HashEncoding,
    RadianceField,
    camera_rays,
    carry_back,
    composite,
    cube_interval,
    fit_field,
    render_field,
    visible_half,
)

CPU = torch.device("cpu")
TINY = FieldSettings(levels=3, coarsest=4, finest=16, table_bits=9, hidden=8, samples=6)
SMALL = FieldSettings(levels=3, coarsest=4, finest=16, table_bits=13, hidden=32, samples=16)
RADIUS = 0.4


def test_features_are_the_tables_at_corners_and_their_mean_between_them() -> None:
    torch.manual_seed(0)
    encoding = HashEncoding(TINY)
    assert encoding.cells == [4, 8, 16]
    assert [len(table) for table in encoding.tables] == [125, 512, 512]
    for table in encoding.tables:
        torch.nn.init.uniform_(table)
    # Corners that all levels share; 4³ cells have a table entry each, finer ones are hashed (equation 4).
    corners = torch.tensor([[0, 0, 0], [1, 2, 3], [3, 0, 1], [4, 4, 4]])
    found = encoding(corners / 4)
    x, y, z = corners.unbind(1)
    expected = [encoding.tables[0][(x * 5 + y) * 5 + z]]
    for table, factor in zip(encoding.tables[1:], (2, 4), strict=True):
        hashed = [(int(a) * PRIMES[0]) ^ (int(b) * PRIMES[1]) ^ (int(c) * PRIMES[2]) for a, b, c in corners * factor]
        expected.append(table[torch.tensor(hashed) % 512])
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    middle = encoding(torch.tensor([[1.5, 2.0, 3.0]]) / 4)[:, :2]
    torch.testing.assert_close(middle, encoding.tables[0][[38, 63]].mean(dim=0, keepdim=True))


def test_gradients_of_encoding_and_rendering_are_those_of_differences() -> None:
    torch.manual_seed(0)
    encoding = HashEncoding(TINY).double()
    points = torch.rand(5, 3, dtype=torch.float64) * 0.98 + 0.01
    assert torch.autograd.gradcheck(encoding, (points.requires_grad_(),))
    density, colour = torch.rand(2, 5, dtype=torch.float64), torch.rand(2, 5, 3, dtype=torch.float64)
    step = torch.full((2, 1), 0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(composite, (density.requires_grad_(), colour.requires_grad_(), step))


def test_an_even_fog_absorbs_exponentially_however_finely_it_is_sampled() -> None:
    for count in (1, 7, 64):
        density, colour = torch.full((1, count), 1.7), torch.full((1, count, 3), 0.25)
        pixel = composite(density, colour, torch.full((1, 1), 0.9 / count))[0]
        covered = 1 - math.exp(-1.7 * 0.9)
        assert pixel.tolist() == pytest.approx([0.25 * covered] * 3 + [covered], rel=1e-5)
    # What lies behind something opaque is not seen.
    wall = composite(torch.tensor([[1e4, 1.0]]), torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]), torch.ones(1, 1))
    assert wall[0].tolist() == pytest.approx([1, 0, 0, 1])


def test_rays_start_at_the_camera_and_pass_through_their_pixels() -> None:
    cameras = Orbit.uniform(3, 20.0).cameras(8)
    origins, directions = camera_rays(cameras, CPU)
    assert origins.shape == directions.shape == (3, 64, 3)
    pixels = np.stack(np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5), axis=-1).reshape(-1, 2)
    for k in range(3):
        np.testing.assert_allclose(
            cameras.project((origins + 1.3 * directions)[k].numpy())[k, :, :2], pixels, atol=1e-3
        )
    near, far = cube_interval(torch.tensor([[-2.0, 0, 0], [0, 0, 0], [-2, 3, 0]]), torch.tensor([[1.0, 0, 0]] * 3), 0.5)
    assert near.tolist() == pytest.approx([1.5, 0, 0])
    assert far.tolist() == pytest.approx([2.5, 0.5, 0])


def test_carried_back_ray_by_ray_the_gradients_are_those_of_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("im3d_lab.evaluate.radiance_field.RAYS", 10)
    torch.manual_seed(0)
    field = RadianceField(0.5, TINY)
    origins, directions = (rays[0] for rays in camera_rays(Orbit.uniform(2, 20.0).cameras(6), CPU))
    jitter = torch.rand(36, TINY.samples)
    target = torch.rand(36, 4)
    pixels = field.render(origins, directions, jitter)
    ((pixels - target) ** 2).sum().backward()
    whole = [p.grad.clone() for p in field.parameters() if p.grad is not None]
    field.zero_grad()
    carry_back(field, origins, directions, jitter, 2 * (pixels.detach() - target))
    parts = [p.grad for p in field.parameters() if p.grad is not None]
    assert len(whole) == len(parts) == 9
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


def ball(cameras: Cameras) -> NDArray[np.float32]:
    """A sphere whose colour is its normal, antialiased: (C, S, S, 4), straight alpha."""
    fine = cameras.resized(4 * cameras.size)
    origins, directions = (rays.double().numpy() for rays in camera_rays(fine, CPU))
    along = (origins * directions).sum(-1)
    root = along**2 - (origins**2).sum(-1) + RADIUS**2
    points = origins - (along + np.sqrt(root.clip(0)))[..., None] * directions
    rgba = (
        np.concatenate([0.5 + 0.45 * points / RADIUS, np.ones_like(points[..., :1])], axis=-1) * (root > 0)[..., None]
    )
    rgba = rgba.reshape(len(cameras), cameras.size, 4, cameras.size, 4, 4).mean(axis=(2, 4))
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
    return rgba.astype(np.float32)


def test_a_ball_seen_from_eight_sides_is_known_from_others() -> None:
    orbit = Orbit.uniform(8, 20.0)
    assert visible_half(orbit) > RADIUS
    views = OrbitViews(ball(orbit.cameras(24)), orbit)
    settings = FitSettings(iterations=150, size=24, lpips=0.0, ms_ssim=0.0, mask=1.0, rgb=3.0)
    reported: list[tuple[int, int]] = []
    field = fit_field(views, settings, 0, CPU, None, SMALL, lambda step, steps, _=None: reported.append((step, steps)))
    assert reported[-1] == (150, 150)
    cameras = Orbit((22.5, 112.5, 202.5, 292.5), 5.0).cameras(24)
    found, truth = render_field(field, cameras), ball(cameras)
    assert min(mask_iou(a[..., 3], b[..., 3]) for a, b in zip(found, truth, strict=True)) > 0.97
    # The right outline in the best single colour reaches 16 dB.
    plain = truth.copy()
    plain[..., :3] = truth[truth[..., 3] > 0.5][:, :3].mean(axis=0)
    reached, outline = (
        np.mean([psnr(x, y) for x, y in zip(over(a), over(truth), strict=True)]) for a in (found, plain)
    )
    assert reached > outline + 3


def test_the_same_seed_gives_the_same_field() -> None:
    orbit = Orbit.uniform(3, 20.0)
    views = OrbitViews(ball(orbit.cameras(32)), orbit)
    settings = FitSettings(iterations=3, size=32, lpips=0.0, ms_ssim=0.0, rgb=1.0)
    one, same, other = (
        render_field(fit_field(views, settings, s, CPU, None, TINY), orbit.cameras(8)) for s in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
