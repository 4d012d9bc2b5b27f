"""The rasterisers of GPUs against the CPU's: the same scene, the same images and gradients; and a fit on the GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import analytic
import pytest
import torch
from splat_scenes import random_gaussians
from torch import Tensor

from im3d.core.images import premultiplied
from im3d.core.orbit import Cameras, Orbit
from im3d.settings import FitSettings
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.image_losses import ms_ssim, ssim_target
from im3d.splats.losses.perceptual import load_perceptual
from im3d.splats.losses.view_losses import ViewLosses
from im3d.splats.losses.view_losses_graph import CudaViewLosses
from im3d.splats.rasterizers import rasterize_gsplat, rasterize_warp
from im3d.splats.render import Rasterizer, blending_weights, render
from im3d_lab.bench.fit import random_vgg16

FIELDS = ("means", "quats", "scales", "opacities", "colors")
WITHOUT_GSPLAT, WITHOUT_WARP = rasterize_gsplat.unavailable_reason(), rasterize_warp.unavailable_reason("cuda")
GSPLAT = pytest.mark.skipif(bool(WITHOUT_GSPLAT), reason=WITHOUT_GSPLAT)
WARP = pytest.mark.skipif(bool(WITHOUT_WARP), reason=WITHOUT_WARP)
each_rasterizer = pytest.mark.parametrize(
    "rasterizer", [pytest.param("cuda", marks=GSPLAT), pytest.param("warp", marks=WARP)]
)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="No CUDA device is visible to torch."),
    pytest.mark.timeout(600),  # the first test compiles gsplat
]


def leaves_on(device: str, gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(t.detach().to(device).requires_grad_() for t in vars(gaussians).values()))


def drawn(
    gaussians: Gaussians, cameras: Cameras, rasterizer: Rasterizer, device: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Colours, coverage and gradients of a loss that weights every pixel differently, all on the CPU."""
    leaves = leaves_on(device, gaussians)
    rendered = render(leaves, cameras, rasterizer)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(leaves.device) for t in (rendered.rgb, rendered.alpha)]
    loss = (rendered.rgb * weights[0]).sum() + (rendered.alpha * weights[1]).sum()
    gradients = torch.autograd.grad(loss, [getattr(leaves, name) for name in FIELDS])
    return rendered.rgb.detach().cpu(), rendered.alpha.detach().cpu(), [g.cpu() for g in gradients]


@each_rasterizer
@pytest.mark.parametrize(("count", "spread"), [(3000, 0.02), (500, 0.06)])
def test_images_and_gradients_equal_the_cpu_rasteriser(rasterizer: Rasterizer, count: int, spread: float) -> None:
    gaussians = random_gaussians(count, spread, seed=count)
    cameras = Orbit.uniform(3, 20.0, 40.0, 2.0).cameras(128)
    rgb, alpha, gradients = drawn(gaussians, cameras, rasterizer, "cuda")
    cpu_rgb, cpu_alpha, cpu_gradients = drawn(gaussians, cameras, "cpu", "cpu")
    # Single pixels may fall on the other side of the 1/255 cut-off, and gsplat ends a pixel before, not after, the
    # splat that takes its transmittance below 1e-4; everything else agrees to rounding.
    assert (rgb - cpu_rgb).abs().max() < 1 / 255
    assert (rgb - cpu_rgb).abs().mean() < 5e-5
    assert (alpha - cpu_alpha).abs().mean() < 5e-5
    for name, mine, reference in zip(FIELDS, gradients, cpu_gradients, strict=True):
        assert (mine - reference).norm() / reference.norm() < 5e-3, name


@WARP
def test_warp_draws_on_the_gpu_what_it_draws_on_the_processor() -> None:
    """The kernels are the same; what remains is rounding, which moves single splats across the 1/255 cut-off."""
    gaussians = random_gaussians(3000, 0.02, seed=5)
    cameras = Orbit.uniform(3, 20.0, 40.0, 2.0).cameras(120)  # the last tiles lie half outside
    rgb, alpha, gradients = drawn(gaussians, cameras, "warp", "cuda")
    cpu_rgb, cpu_alpha, cpu_gradients = drawn(gaussians, cameras, "warp", "cpu")
    assert (rgb - cpu_rgb).abs().max() < 1 / 255
    assert (rgb - cpu_rgb).abs().mean() < 1e-6
    assert (alpha - cpu_alpha).abs().mean() < 1e-6
    for name, mine, reference in zip(FIELDS, gradients, cpu_gradients, strict=True):
        assert (mine - reference).norm() / reference.norm() < 1e-3, name


@WARP
@GSPLAT
def test_warp_draws_what_gsplat_draws() -> None:
    gaussians = random_gaussians(3000, 0.02, seed=6)
    cameras = Orbit.uniform(3, 20.0, 40.0, 2.0).cameras(128)
    rgb, alpha, gradients = drawn(gaussians, cameras, "warp", "cuda")
    other_rgb, other_alpha, other_gradients = drawn(gaussians, cameras, "cuda", "cuda")
    assert (rgb - other_rgb).abs().max() < 1 / 255
    assert (rgb - other_rgb).abs().mean() < 5e-5
    assert (alpha - other_alpha).abs().mean() < 5e-5
    for name, mine, reference in zip(FIELDS, gradients, other_gradients, strict=True):
        assert (mine - reference).norm() / reference.norm() < 5e-3, name


@WARP
def test_warp_works_on_the_stream_that_torch_works_on() -> None:
    gaussians = random_gaussians(2000, 0.05, seed=7).detach().to("cuda")
    cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(128)
    expected = render(gaussians, cameras, "warp").rgb
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whoever does not wait for it reads what is not there yet
        late = Gaussians(*(t.clone() for t in vars(gaussians).values()))
        rgb = render(late, cameras, "warp").rgb
    stream.synchronize()
    assert torch.equal(rgb, expected)


@each_rasterizer
def test_visibility_and_screen_gradients_agree(rasterizer: Rasterizer) -> None:
    gaussians = random_gaussians(500, 0.03, seed=1)
    cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
    screen, visible = {}, {}
    pairs: tuple[tuple[str, Rasterizer], ...] = (("cuda", rasterizer), ("cpu", "cpu"))
    for device, name in pairs:
        rendered = render(leaves_on(device, gaussians), cameras, name)
        rendered.rgb.square().sum().backward()
        screen[device] = rendered.screen_gradients().detach().cpu()
        visible[device] = rendered.visible.cpu()
    assert (visible["cuda"] == visible["cpu"]).float().mean() > 0.99
    assert (screen["cuda"] - screen["cpu"]).norm() / screen["cpu"].norm() < 5e-3


@each_rasterizer
def test_blending_weights_agree(rasterizer: Rasterizer) -> None:
    gaussians = random_gaussians(500, 0.03, seed=2).detach()
    cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
    mine = blending_weights(gaussians.to("cuda"), cameras, rasterizer).cpu()
    torch.testing.assert_close(mine, blending_weights(gaussians, cameras, "cpu"), rtol=1e-2, atol=1e-2)


def test_losses_agree_with_the_cpu() -> None:
    x = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    cpu = ms_ssim(x, ssim_target(y))
    torch.testing.assert_close(ms_ssim(x.cuda(), ssim_target(y.cuda())).cpu(), cpu, rtol=1e-3, atol=1e-4)
    mine, reference = load_perceptual(torch.device("cuda")), load_perceptual(torch.device("cpu"))
    distance = mine(x.cuda(), mine.features(y.cuda())).cpu()
    torch.testing.assert_close(distance, reference(x, reference.features(y)), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_losses_of_a_fit_are_those_of_whole_pictures_in_full_precision(recorded: bool) -> None:
    device = torch.device("cuda")
    views = analytic.orbit_views(192, count=8)
    rgba = torch.from_numpy(premultiplied(views.rgba)).to(device)
    settings = FitSettings(rgb=1.0)
    plain = ViewLosses(rgba, settings, random_vgg16(device))
    fast = CudaViewLosses(rgba, settings, random_vgg16(device), recorded)
    generator = torch.Generator(device).manual_seed(0)
    for rows, background in (([0, 3, 5, 6], 1), ([7, 2, 1, 4], 0)):
        noise = 0.1 * torch.rand(4, 3, 192, 192, generator=generator, device=device)
        image = (plain.images[background][rows] + noise).clamp(0, 1)
        alpha = (plain.alpha[rows] + noise[:, 0]).clamp(0, 1)
        answers = []
        for losses in (plain, fast):
            leaves = image.clone().requires_grad_(), alpha.clone().requires_grad_()
            total, parts = losses(*leaves, rows, background)
            (2 * total).backward()
            answers.append((total, parts, [leaf.grad for leaf in leaves]))
        (expected, expected_parts, slopes), (total, parts, found) = answers
        assert set(parts) == set(expected_parts)
        for name, value in expected_parts.items():
            torch.testing.assert_close(parts[name], value, rtol=2e-2, atol=1e-4)
        torch.testing.assert_close(total, expected, rtol=2e-2, atol=1e-4)
        torch.testing.assert_close(found[1], slopes[1])
        assert torch.nn.functional.cosine_similarity(found[0].flatten(), slopes[0].flatten(), dim=0) > 0.98


@each_rasterizer
def test_a_fit_on_the_gpu_shows_the_object_and_can_go_on(rasterizer: Rasterizer, tmp_path: Path) -> None:
    views = analytic.orbit_views(96)
    settings = FitSettings(iterations=300, size=96, points=2000, max_gaussians=5000, rgb=2.0)
    device = torch.device("cuda")
    fit = SplatFit(views, settings, 3, device, rasterizer, load_perceptual(device))
    fit.run(150)
    fit.save(tmp_path / "fit.pt")
    again = SplatFit(views, settings, 3, device, rasterizer, load_perceptual(device))
    again.load(tmp_path / "fit.pt")
    assert again.iteration == 150
    again.run(300)
    cameras, truth = analytic.novel_views(96, ((11.25, 15.0), (48.0, 25.0), (190.0, 30.0)))
    picture = render(again.finished(), cameras, rasterizer).over(1.0).cpu()
    target = torch.from_numpy(truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:])
    psnr = -10 * torch.log10((picture - target).square().mean(dim=(1, 2, 3)))
    assert float(psnr.mean()) > 24
    # The same splats, drawn on the CPU.
    on_cpu = render(again.finished().to("cpu"), cameras, "cpu").over(1.0)
    assert float((picture - on_cpu).abs().mean()) < 1e-4


def test_four_views_a_step_is_the_default_on_a_gpu() -> None:
    views = analytic.orbit_views(96)
    settings = dataclasses.replace(FitSettings(), size=48, points=200, lpips=0.0)
    fit = SplatFit(views, settings, 0, torch.device("cuda"), "cuda", None)
    assert len(fit._rows(0)) == 4
