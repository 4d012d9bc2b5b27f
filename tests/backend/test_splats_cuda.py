"""The CUDA rasteriser against the CPU one: the same scene, the same images and gradients; and a fit on the GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import analytic
import pytest
import torch
from splat_scenes import random_gaussians
from torch import Tensor

from im3d.orbit import Cameras, Orbit
from im3d.settings import FitSettings
from im3d.splats import rasterize_cuda
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses import ms_ssim, ssim_target
from im3d.splats.perceptual import load_perceptual
from im3d.splats.render import Rasterizer, blending_weights, render

FIELDS = ("means", "quats", "scales", "opacities", "colors")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(rasterize_cuda.unavailable_reason()), reason=rasterize_cuda.unavailable_reason()),
    pytest.mark.timeout(600),  # the first test compiles gsplat
]


def leaves_on(device: str, gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(t.detach().to(device).requires_grad_() for t in vars(gaussians).values()))


def drawn(gaussians: Gaussians, cameras: Cameras, rasterizer: Rasterizer) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Colours, coverage and gradients of a loss that weights every pixel differently, all on the CPU."""
    leaves = leaves_on(rasterizer, gaussians)  # torch's devices have the same names
    rendered = render(leaves, cameras, rasterizer)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=generator).to(leaves.device) for t in (rendered.rgb, rendered.alpha)]
    loss = (rendered.rgb * weights[0]).sum() + (rendered.alpha * weights[1]).sum()
    gradients = torch.autograd.grad(loss, [getattr(leaves, name) for name in FIELDS])
    return rendered.rgb.detach().cpu(), rendered.alpha.detach().cpu(), [g.cpu() for g in gradients]


@pytest.mark.parametrize(("count", "spread"), [(3000, 0.02), (500, 0.06)])
def test_images_and_gradients_equal_the_cpu_rasteriser(count: int, spread: float) -> None:
    gaussians = random_gaussians(count, spread, seed=count)
    cameras = Orbit.uniform(3, 20.0, 40.0, 2.0).cameras(128)
    rgb, alpha, gradients = drawn(gaussians, cameras, "cuda")
    cpu_rgb, cpu_alpha, cpu_gradients = drawn(gaussians, cameras, "cpu")
    # Single pixels may fall on the other side of the 1/255 cut-off, and gsplat ends a pixel before, not after, the
    # splat that takes its transmittance below 1e-4; everything else agrees to rounding.
    assert (rgb - cpu_rgb).abs().max() < 1 / 255
    assert (rgb - cpu_rgb).abs().mean() < 5e-5
    assert (alpha - cpu_alpha).abs().mean() < 5e-5
    for name, mine, reference in zip(FIELDS, gradients, cpu_gradients, strict=True):
        assert (mine - reference).norm() / reference.norm() < 5e-3, name


def test_visibility_and_screen_gradients_agree() -> None:
    gaussians = random_gaussians(500, 0.03, seed=1)
    cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
    screen, visible = {}, {}
    rasterizers: tuple[Rasterizer, ...] = ("cuda", "cpu")
    for rasterizer in rasterizers:
        rendered = render(leaves_on(rasterizer, gaussians), cameras, rasterizer)
        rendered.rgb.square().sum().backward()
        screen[rasterizer] = rendered.screen_gradients().detach().cpu()
        visible[rasterizer] = rendered.visible.cpu()
    assert (visible["cuda"] == visible["cpu"]).float().mean() > 0.99
    assert (screen["cuda"] - screen["cpu"]).norm() / screen["cpu"].norm() < 5e-3


def test_blending_weights_agree() -> None:
    gaussians = random_gaussians(500, 0.03, seed=2).detach()
    cameras = Orbit.uniform(2, 20.0, 40.0, 2.0).cameras(96)
    mine = blending_weights(gaussians.to("cuda"), cameras, "cuda").cpu()
    torch.testing.assert_close(mine, blending_weights(gaussians, cameras, "cpu"), rtol=1e-2, atol=1e-2)


def test_losses_agree_with_the_cpu() -> None:
    x = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    cpu = ms_ssim(x, ssim_target(y))
    torch.testing.assert_close(ms_ssim(x.cuda(), ssim_target(y.cuda())).cpu(), cpu, rtol=1e-3, atol=1e-4)
    mine, reference = load_perceptual(torch.device("cuda")), load_perceptual(torch.device("cpu"))
    distance = mine(x.cuda(), mine.features(y.cuda())).cpu()
    torch.testing.assert_close(distance, reference(x, reference.features(y)), rtol=2e-2, atol=1e-4)


def test_a_fit_on_the_gpu_shows_the_object_and_can_go_on(tmp_path: Path) -> None:
    views = analytic.orbit_views(96)
    settings = FitSettings(iterations=300, size=96, points=2000, max_gaussians=5000, rgb=2.0)
    device = torch.device("cuda")
    fit = SplatFit(views, settings, 3, device, "cuda", load_perceptual(device))
    fit.run(150)
    fit.save(tmp_path / "fit.pt")
    again = SplatFit(views, settings, 3, device, "cuda", load_perceptual(device))
    again.load(tmp_path / "fit.pt")
    assert again.iteration == 150
    again.run(300)
    cameras, truth = analytic.novel_views(96, ((11.25, 15.0), (48.0, 25.0), (190.0, 30.0)))
    picture = render(again.finished(), cameras, "cuda").over(1.0).cpu()
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
