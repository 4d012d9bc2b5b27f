"""The instrument's picture metrics against other people's implementations, its surface metrics against geometry."""

from __future__ import annotations

import math

import lpips as lpips_package
import numpy as np
import pytest
import pytorch_msssim
import torch
from skimage.metrics import peak_signal_noise_ratio

from im3d.splats.losses.perceptual import LPIPS_MEAN, LPIPS_STD, Perceptual, Vgg16, load_perceptual, lpips_weights
from im3d_lab.evaluate.metrics import PSNR_CEILING, compare_views, lpips, mask_iou, psnr, ssim
from im3d_lab.evaluate.surface import Points, compare_points, compare_surfaces, exterior, sample_surface


def picture(seed: int, size: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth random picture."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((1, channels, 8, 8), dtype=np.float32))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0).numpy()


def test_psnr_equals_scikit_image() -> None:
    a, b = picture(0), picture(1)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-5)
    assert psnr(a, a) == PSNR_CEILING


def test_ssim_equals_another_implementation() -> None:
    """pytorch-msssim takes windows inside the picture, scikit-image crops the border by the same five pixels."""
    a, b = picture(2), np.clip(picture(2) + 0.2 * picture(3), 0, 1)
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None] for i in (a, b))
    theirs = float(pytorch_msssim.ssim(x.double(), y.double(), data_range=1.0))
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-4)
    assert 0.1 < theirs < 0.95


def test_lpips_equals_the_package() -> None:
    torch.manual_seed(0)
    package = lpips_package.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False).eval()
    # The package's random VGG, under torchvision's names.
    layers = [layer for i in range(1, 6) for layer in getattr(package.net, f"slice{i}").named_children()]
    state = {
        f"features.{name}.{kind}": getattr(layer, kind).detach()
        for name, layer in layers
        if isinstance(layer, torch.nn.Conv2d)
        for kind in ("weight", "bias")
    }
    ours = Perceptual("test", Vgg16(state), lpips_weights(), LPIPS_MEAN, LPIPS_STD)
    a, b = picture(4), picture(5)
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None] for i in (a, b))
    with torch.no_grad():
        theirs = float(package(x, y, normalize=True))
    assert theirs > 1e-3
    assert lpips(a, b, ours) == pytest.approx(theirs, rel=1e-4)


def test_views_on_white_and_on_the_object() -> None:
    """A picture wrong by 0.1 inside a quarter of it: the error of the object, diluted by four on white."""
    truth = np.zeros((1, 32, 32, 4), np.float32)
    truth[:, :16, :16] = [0.5, 0.5, 0.5, 1.0]
    mine = truth.copy()
    mine[..., :3] += 0.1
    found = compare_views(mine, truth, load_perceptual(torch.device("cpu")))
    assert found["psnr_object"] == pytest.approx(20.0, abs=1e-4)
    assert found["psnr"] == pytest.approx(20 + 10 * math.log10(4), abs=1e-4)
    assert found["iou"] == 1.0
    assert found["worst_psnr"] == found["psnr"]


def test_identical_views_are_perfect() -> None:
    views = np.stack([picture(s, 32, 4) for s in (6, 7)])
    found = compare_views(views, views, load_perceptual(torch.device("cpu")))
    assert (found["psnr"], found["iou"]) == (PSNR_CEILING, 1.0)
    assert found["ssim"] == pytest.approx(1.0, abs=1e-6)
    assert found["lpips"] == pytest.approx(0.0, abs=1e-6)


def test_mask_iou() -> None:
    a, b = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    assert mask_iou(a, b) == 1.0
    a[:, :4], b[:, 2:6] = 1, 1
    assert mask_iou(a, b) == pytest.approx(2 / 6)


def sphere(radius: float, subdivisions: int = 64) -> tuple[np.ndarray, np.ndarray]:
    import trimesh

    mesh = trimesh.creation.uv_sphere(radius, count=[subdivisions, 2 * subdivisions])
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


@pytest.mark.parametrize(("gap", "fscore"), [(0.004, 1.0), (0.03, 0.0)])
def test_surfaces_of_concentric_spheres(gap: float, fscore: float) -> None:
    """Their distance is the difference of their radii, both ways."""
    found = compare_surfaces(sphere(0.5 + gap), sphere(0.5))
    # Samples of the other surface lie beside the foot of the perpendicular: √(gap² + spacing²).
    spacing = math.sqrt(math.pi / 400_000)
    assert gap <= found["chamfer"] + 2e-4
    assert found["chamfer"] <= math.hypot(gap, spacing)
    assert found["fscore"] == pytest.approx(fscore, abs=1e-6)
    assert found["normal_consistency"] > 0.999


def test_points_in_closed_form() -> None:
    """Two of four points are 0.2 away, two on the spot; one normal of each pair is turned by 60°."""
    square = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [4, 4, 0]], np.float32)
    up = np.tile(np.array([[0, 0, 1]], np.float32), (4, 1))
    tilted = np.tile(np.array([[math.sin(math.pi / 3), 0, 0.5]], np.float32), (4, 1))
    moved = square + np.array([[0, 0, 0], [0, 0, 0.2], [0, 0, 0], [0, 0, 0.2]], np.float32)
    found = compare_points(Points(moved, tilted), Points(square, -up), threshold=0.1)
    assert found["chamfer"] == pytest.approx(0.1)
    assert found["fscore"] == pytest.approx(0.5)
    assert found["normal_consistency"] == pytest.approx(0.5)


def test_hidden_faces_do_not_count() -> None:
    """A small sphere inside a large one is seen from nowhere."""
    outer, inner = sphere(0.5), sphere(0.3)
    both = np.concatenate([outer[0], inner[0]]), np.concatenate([outer[1], inner[1] + len(outer[0])])
    seen = exterior(sample_surface(*both, 400_000, 0))
    # A pixel that no sample of the outer sphere fell into lets a few inner ones through.
    assert (np.linalg.norm(seen.positions, axis=1) < 0.45).mean() < 1e-4
    plain = exterior(sample_surface(*outer, 200_000, 0))
    assert len(plain.positions) > 0.99 * 200_000


def test_samples_are_even() -> None:
    """One triangle has three times the area of the other and gets three times the points; all lie inside."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 1, 5]], np.float32)
    points = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]], np.int32), 20_000, 1)
    low = points.positions[:, 2] == 0
    assert low.mean() == pytest.approx(0.25, abs=0.02)
    x, y = points.positions[low, :2].T
    assert (x + y).max() <= 1 + 1e-6
    np.testing.assert_allclose([x.mean(), y.mean()], 1 / 3, atol=0.02)
