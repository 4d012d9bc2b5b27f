"""The fit: what an iteration is made of, a whole one, and the same loop written with the stock loss packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from im3d.core.images import FloatArray, OrbitViews, premultiplied
from im3d.settings import FitSettings
from im3d.splats.fit import LEARNING_RATES, SplatFit
from im3d.splats.losses.image_losses import mask_loss
from im3d.splats.losses.perceptual import (
    LPIPS_MEAN,
    LPIPS_STD,
    VGG16_LAYERS,
    Perceptual,
    Vgg16,
    load_perceptual,
    lpips_weights,
)
from im3d.splats.losses.view_losses import ViewLosses, summed
from im3d.splats.render import Rasterizer, best_rasterizer, rasterizers, render
from im3d_lab.bench.measure import Bench

# Every so many-th view is held out to compare the quality of whole fits.
HELD_OUT_EVERY = 4


def bench_fit(bench: Bench, views: OrbitViews, settings: FitSettings, peer: bool) -> dict[str, Any]:
    """Measures the parts of an iteration, and a whole fit.

    Args:
        bench: Takes the rows.
        views: Pictures at known cameras, at least 8.
        settings: Of the fit; the losses should be the paper's.
        peer: Also run the loop as one would write it with the packages `lpips` and `pytorch_msssim`.

    Returns:
        Splats at the end, seconds (in all, and without the first iterations, which load and choose kernels) and
        held-out PSNR of the whole fit, and of the peer's.
    """
    # The stock loss refuses small pictures, and both should do the same work.
    settings = dataclasses.replace(settings, ramp=0.0)
    held = list(range(HELD_OUT_EVERY // 2, len(views.orbit), HELD_OUT_EVERY))
    shown = _rows(views, [k for k in range(len(views.orbit)) if k not in held])
    perceptual = random_vgg16(bench.device) if peer else load_perceptual(bench.device)
    fit = _fit(SplatFit, bench, shown, settings, perceptual)
    answer: dict[str, Any] = {
        "perceptual": perceptual.name,
        "rasterizer": fit.rasterizer,
        "iterations": settings.iterations,
    }
    answer["whole"] = _whole(bench, "whole fit", fit, _rows(views, held))
    _parts(bench, fit)
    bench.measure("iteration", _iterations(fit))
    if peer:
        stock = _fit(StockFit, bench, shown, settings, perceptual)
        answer["peer"] = _whole(bench, "whole fit, stock packages", stock, _rows(views, held))
        bench.measure("iteration, stock packages", _iterations(stock))
        answer["times_faster"] = answer["peer"]["seconds"] / answer["whole"]["seconds"]
        answer["times_faster_warm"] = answer["peer"]["warm_seconds"] / answer["whole"]["warm_seconds"]
    return answer


def _fit(
    kind: type[SplatFit], bench: Bench, views: OrbitViews, settings: FitSettings, perceptual: Perceptual
) -> SplatFit:
    return kind(views, settings, 0, bench.device, best_rasterizer(bench.device), perceptual)


def _whole(bench: Bench, part: str, fit: SplatFit, held_out: OrbitViews) -> dict[str, float]:
    """Runs a fit to its end in two halves; the first iterations are the cold call."""
    warm_up = max(1, fit.settings.iterations // 50)
    row = bench.measure(part, _stretches(fit, warm_up), repeats=1)
    return {
        "seconds": row.cold_s + row.median_s,
        "warm_seconds": row.median_s,
        "splats": len(fit.gaussians()),
        "held_out_psnr": _psnr(fit, held_out),
    }


def _stretches(fit: SplatFit, warm_up: int) -> Callable[[], None]:
    def run() -> None:
        fit.run(warm_up if fit.iteration == 0 else fit.settings.iterations)

    return run


def _iterations(fit: SplatFit) -> Callable[[], None]:
    """One more iteration at the size that the fit has reached; it no longer densifies."""

    def step() -> None:
        fit._step(fit._rows(fit.iteration))

    return step


def _parts(bench: Bench, fit: SplatFit) -> None:
    """Drawing, each loss with its gradient, and the optimiser, at the fit's present splats."""
    rows = fit._rows(fit.iteration)
    cameras, losses = fit.cameras[rows], fit.losses

    def draw(rasterizer: Rasterizer = fit.rasterizer) -> Tensor:
        return render(fit._activated(), cameras, rasterizer).over(0.0)

    def draw_without_gradient() -> None:
        with torch.no_grad():
            draw()

    bench.measure("draw", draw_without_gradient)
    bench.measure("draw, with gradient", lambda: draw().sum().backward())
    if bench.device.type == "cuda" and fit.rasterizer != "warp" and not rasterizers()["warp"]:
        bench.measure("draw, with gradient, by warp", lambda: draw("warp").sum().backward())
    picture = draw().detach().permute(0, 3, 1, 2).contiguous()

    def with_gradient(loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            loss(picture.clone().requires_grad_()).backward()

        return run

    if fit.settings.ms_ssim > 0:
        bench.measure("MS-SSIM, with gradient", with_gradient(lambda x: losses.ms_ssim(x, rows, 0)))
    if fit.perceptual is not None:
        run = with_gradient(lambda x: losses.distance(x, rows, 0))
        with FlopCounterMode(display=False) as counter:
            run()
        bench.measure("perceptual, with gradient", run, operations=counter.get_total_flops())

    def step() -> None:
        for parameter in fit.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for optimizer in fit.optimizers.values():
            optimizer.step()

    bench.measure("optimiser", step)


def _rows(views: OrbitViews, rows: list[int]) -> OrbitViews:
    azimuths = tuple(views.orbit.azimuths_deg[k] for k in rows)
    return OrbitViews(views.rgba[rows], dataclasses.replace(views.orbit, azimuths_deg=azimuths))


def _psnr(fit: SplatFit, views: OrbitViews) -> float:
    """dB over white, mean over views."""
    size = fit.settings.size or views.size
    truth: FloatArray = premultiplied(views.resized(size).rgba)
    with torch.no_grad():
        drawn = render(fit.gaussians(), views.orbit.cameras(size), fit.rasterizer).over(1.0).clamp(0, 1).cpu().numpy()
    error = np.square(drawn - (truth[..., :3] + 1 - truth[..., 3:])).mean(axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(error)))


class StockFit(SplatFit):
    """The same loop as one writes it with the packages: stock losses, and Adam is not fused.

    The perceptual network must be VGG16's.
    """

    def _losses(self, rgba: Tensor, settings: FitSettings) -> ViewLosses:
        assert self.perceptual is not None
        return StockLosses(rgba, settings, self.perceptual)

    def _optimize(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _set_parameters(self, values: dict[str, Tensor]) -> None:
        super()._set_parameters(values)
        self.optimizers = {
            k: torch.optim.Adam([p], lr=LEARNING_RATES[k], eps=1e-15, foreach=False, fused=False)
            for k, p in self.parameters.items()
        }


class StockLosses(ViewLosses):
    """The losses by the packages `lpips`, with the same weights, and `pytorch_msssim`; nothing about views is kept."""

    def __init__(self, rgba: Tensor, settings: FitSettings, perceptual: Perceptual) -> None:
        import lpips

        super().__init__(rgba, dataclasses.replace(settings, ms_ssim=0.0), None)
        self.settings = settings
        self._lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).to(rgba.device).requires_grad_(False)
        convolutions = [m for m in self._lpips.net.modules() if isinstance(m, nn.Conv2d)]
        mine = [m for m in perceptual.network.modules() if isinstance(m, nn.Conv2d)]
        for layer, source in zip(convolutions, mine, strict=True):
            layer.load_state_dict(source.state_dict())

    def __call__(
        self, images: Tensor, alpha: Tensor, rows: list[int], background: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        import pytorch_msssim

        weights, targets = self.settings, self.images[background][rows]
        similarity = pytorch_msssim.ms_ssim(images, targets, data_range=1)
        distance: Tensor = self._lpips(self._shrunk(images), self._shrunk(targets), normalize=True).mean()
        return summed(
            {
                "mask": weights.mask * mask_loss(alpha, self.alpha[rows]),
                "ms_ssim": weights.ms_ssim * (1 - similarity),
                "lpips": weights.lpips * distance,
            }
        )


def random_vgg16(device: torch.device) -> Perceptual:
    """LPIPS on VGG16 with random weights, the same each time: what a pass costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    index, channels = 0, 3
    for block in VGG16_LAYERS:
        for width in block:
            scale = (2 / (9 * channels)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
            state[f"features.{index}.bias"] = torch.zeros(width)
            index, channels = index + 2, width
        index += 1
    return Perceptual("vgg16 with random weights", Vgg16(state), lpips_weights(), LPIPS_MEAN, LPIPS_STD).to(device)
