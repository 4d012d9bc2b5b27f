"""Gaussians fitted directly to the views of an orbit (paper 3.3, A.1).

    fit = SplatFit(views, settings.fit, seed, device, rasterizer, perceptual)
    fit.run(until=500)            # then, for each round of the paper's loop (3.4):
    fit.retarget(refined_views)
    fit.run(until=1000)
    gaussians = fit.finished()

Every random choice is a function of the seed and the iteration, so that a fit continued from `save` takes the same path
as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from im3d.core.images import OrbitViews, premultiplied
from im3d.core.orbit import Cameras
from im3d.core.progress import Progress, silent
from im3d.core.storage import replacing
from im3d.errors import InputError
from im3d.settings import FitSettings
from im3d.splats import densify
from im3d.splats.gaussians import Gaussians
from im3d.splats.init import hull_points
from im3d.splats.losses.perceptual import Perceptual
from im3d.splats.losses.view_losses import BACKGROUNDS, ViewLosses
from im3d.splats.render import Rasterizer, blending_weights, render

LEARNING_RATES = {"means": 1e-3, "scales": 5e-3, "quats": 5e-3, "opacities": 5e-2, "colors": 2e-2}
# Positions end at this share of their learning rate, falling exponentially, as in 3DGS.
FINAL_MEANS_RATE = 0.02
INITIAL_OPACITY = 0.1
# A splat that never contributes a third of a pixel is hidden inside; it would show up from new angles.
UNSEEN_WEIGHT = 0.3
PREVIEW_EVERY = 50
# Smaller pictures are compared in full from the first iteration on.
RAMP_FROM = 192


class SplatFit:
    """One fit in progress.

    Args:
        views: Pictures and cameras; the elevation must be known.
        settings: See `FitSettings`.
        seed: Of every random choice.
        device: Of all tensors.
        rasterizer: One that runs on the device.
        perceptual: The perceptual loss (paper 3.3); may be None when its weight is 0.

    Raises:
        InputError: The silhouettes have no common volume.
    """

    def __init__(
        self,
        views: OrbitViews,
        settings: FitSettings,
        seed: int,
        device: torch.device,
        rasterizer: Rasterizer,
        perceptual: Perceptual | None,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.device = device
        self.rasterizer = rasterizer
        self.perceptual = perceptual if settings.lpips > 0 else None
        self.policy = densify.DensifyPolicy(max_gaussians=settings.max_gaussians)
        self.iteration = 0
        self.tilt: torch.nn.Parameter | None = None
        self.retarget(views)
        self._start_from(initial_gaussians(views, settings, seed))

    def retarget(self, views: OrbitViews, *others: OrbitViews) -> None:
        """Fits other pictures from now on: the refined views of the paper's loop (3.4).

        Args:
            views: Pictures of the cameras so far.
            others: Pictures of further orbits with the same field of view, compared as well.
        """
        self._orbits = (views, *others)
        self._compare_at(self._size())

    def run(self, until: int, progress: Progress = silent) -> None:
        """Optimises up to iteration `until`.

        Args:
            until: At most `settings.iterations`.
            progress: Called every 10 iterations, with a render every `PREVIEW_EVERY`.
        """
        start, end = self.iteration, min(until, self.settings.iterations)
        while self.iteration < end:
            if self.cameras.size != self._size():
                self._compare_at(self._size())
            self._step(self._rows(self.iteration))
            self.iteration += 1
            if self.iteration % 10 == 0 or self.iteration == end:
                # Copying a preview waits for the GPU: none is rendered where nothing shows it.
                shown = self.iteration % PREVIEW_EVERY == 0 and progress is not silent
                preview = self._preview() if shown else None
                progress(self.iteration - start, end - start, preview)

    def learn_tilt(self, rate: float) -> None:
        """From now on the cameras' elevation is optimised too, on the CPU rasteriser.

        Args:
            rate: Learning rate in radians; `tilt` then holds how far the cameras are raised.
        """
        self.tilt = torch.nn.Parameter(torch.zeros(()))
        self._tilt_optimizer = torch.optim.Adam([self.tilt], lr=rate)

    def set_tilt_rate(self, rate: float) -> None:
        """Changes the learning rate of the elevation, in radians."""
        self._tilt_optimizer.param_groups[0]["lr"] = rate

    @property
    def perceptual_name(self) -> str:
        """Which features the perceptual loss compares; "none" when its weight is 0."""
        return self.perceptual.name if self.perceptual is not None else "none"

    def gaussians(self) -> Gaussians:
        """The splats at this iteration, detached."""
        return self._activated().detach()

    def finished(self) -> Gaussians:
        """The splats, detached, without those that no view sees: they would appear from new angles.

        Raises:
            InputError: Nothing is left; the views cannot be explained by one object.
        """
        gaussians = self.gaussians()
        seen = blending_weights(gaussians, self._cameras(self._full_size), self.rasterizer).amax(dim=0) > UNSEEN_WEIGHT
        if int(seen.sum()) < 10:
            raise InputError(
                "The views could not be explained by one object.", "Check the masks, the elevation and their order."
            )
        return gaussians[seen]

    def save(self, path: Path) -> None:
        """Writes the state of the optimisation, so that `load` continues exactly where this fit is."""
        state = {
            "iteration": self.iteration,
            "parameters": {k: p.detach() for k, p in self.parameters.items()},
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
            "statistics": self.statistics,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Restores the state that `save` wrote.

        Raises:
            InputError: The file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            self._set_parameters(state["parameters"])
            for name, saved in state["optimizers"].items():
                self.optimizers[name].load_state_dict(saved)
            self.statistics, self.iteration = state["statistics"], int(state["iteration"])
        except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise InputError(f"{path} is damaged.", "Delete the job's work folder and resume the job.") from error

    # ---------------------------------------------------------------- what is compared

    @property
    def _full_size(self) -> int:
        return self.settings.size or self._orbits[0].size

    def _size(self) -> int:
        """Side in pixels of the pictures that this iteration compares."""
        size = self._full_size
        halved = size >= RAMP_FROM and self.iteration < self.settings.ramp * self.settings.iterations
        return size // 2 if halved else size

    def _cameras(self, size: int) -> Cameras:
        viewmats = np.concatenate([v.orbit.cameras(size).viewmats for v in self._orbits])
        return Cameras(viewmats, self._orbits[0].orbit.cameras(size).focal, size)

    def _compare_at(self, size: int) -> None:
        self.cameras = self._cameras(size)
        rgba = np.concatenate([premultiplied(v.resized(size).rgba) for v in self._orbits])
        # Views that were generated smaller than they are compared have no detail for the perceptual loss to see.
        shrink = max(self.settings.lpips_shrink, size // min(v.size for v in self._orbits))
        settings = dataclasses.replace(self.settings, lpips_shrink=shrink)
        self.losses = self._losses(torch.from_numpy(rgba).to(self.device), settings)

    # ---------------------------------------------------------------- one iteration

    def _step(self, rows: list[int]) -> None:
        background = int(np.random.default_rng([self.seed, self.iteration, 1]).integers(len(BACKGROUNDS)))
        rate = FINAL_MEANS_RATE ** (self.iteration / self.settings.iterations)
        self.optimizers["means"].param_groups[0]["lr"] = LEARNING_RATES["means"] * rate

        rendered = render(self._activated(), self.cameras[rows], self.rasterizer, tilt=self.tilt)
        images = rendered.over(BACKGROUNDS[background]).permute(0, 3, 1, 2)
        loss, _ = self.losses(images, rendered.alpha, rows, background)
        loss.backward()
        with torch.no_grad():
            self.statistics["gradient"] += (rendered.screen_gradients() * rendered.visible).sum(dim=0)
            self.statistics["seen"] += rendered.visible.sum(dim=0)
        self._optimize()
        if self.tilt is not None:
            self._tilt_optimizer.step()
            self._tilt_optimizer.zero_grad(set_to_none=True)
        if self._densifies():
            seed = int(np.random.default_rng([self.seed, self.iteration, 2]).integers(2**62))
            self.statistics = densify.densify_and_prune(
                self.parameters, self.optimizers, self.statistics, self.policy, seed
            )
            if self.policy.reset_every and self.iteration % self.policy.reset_every == 0:
                densify.reset_opacities(self.parameters, self.optimizers, 2 * self.policy.min_opacity)

    def _optimize(self) -> None:
        for optimizer in self.optimizers.values():
            _adam_step(optimizer)

    def _densifies(self) -> bool:
        total, every = self.settings.iterations, self.settings.densify_every
        within = self.policy.start * total <= self.iteration <= self.policy.stop * total
        return within and self.iteration > 0 and self.iteration % every == 0

    def _rows(self, iteration: int) -> list[int]:
        """The views compared in one iteration: every view once before any comes again."""
        count = len(self.cameras)
        per_step = min(count, self.settings.views_per_iteration or (1 if self.device.type == "cpu" else 4))
        first = iteration * per_step
        rows = []
        for position in range(first, first + per_step):
            rows.append(_shuffled(self.seed, position // count, count)[position % count])
        return rows

    # ---------------------------------------------------------------- state

    def _activated(self) -> Gaussians:
        p = self.parameters
        return Gaussians(
            means=p["means"],
            quats=p["quats"],
            scales=p["scales"].exp(),
            opacities=torch.sigmoid(p["opacities"]),
            colors=torch.sigmoid(p["colors"]),
        )

    def _start_from(self, gaussians: Gaussians) -> None:
        self._set_parameters(
            {
                "means": gaussians.means,
                "quats": gaussians.quats,
                "scales": gaussians.scales.log(),
                "opacities": torch.logit(gaussians.opacities),
                "colors": torch.logit(gaussians.colors.clamp(0.02, 0.98)),
            }
        )
        self.statistics = densify.new_statistics(len(gaussians), self.device)

    def _set_parameters(self, values: dict[str, Tensor]) -> None:
        self.parameters = {k: torch.nn.Parameter(v.to(self.device).clone()) for k, v in values.items()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            k: torch.optim.Adam([p], lr=LEARNING_RATES[k], eps=1e-15, fused=True) for k, p in self.parameters.items()
        }

    def _losses(self, rgba: Tensor, settings: FitSettings) -> ViewLosses:
        if rgba.device.type == "cuda":
            from im3d.splats.losses.view_losses_graph import CudaViewLosses

            return CudaViewLosses(rgba, settings, self.perceptual)
        return ViewLosses(rgba, settings, self.perceptual)

    def _preview(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.no_grad():
            rendered = render(self._activated(), self._cameras(self._full_size)[0], self.rasterizer)
            return rendered.over(1.0)[0].clamp(0, 1).cpu().numpy()


@functools.lru_cache(maxsize=16)
def _shuffled(seed: int, turn: int, count: int) -> list[int]:
    """The views in the order in which one turn through all of them takes them."""
    order: list[int] = np.random.default_rng([seed, turn]).permutation(count).tolist()
    return order


def _adam_step(optimizer: torch.optim.Optimizer) -> None:
    """A step of a fused Adam of one parameter, whose gradient it takes away.

    The optimiser's own `step` spends most of a fit's time for it on hooks and on sorting its one parameter.
    """
    (group,) = optimizer.param_groups
    (parameter,) = group["params"]
    state = optimizer.state[parameter]
    if not state:
        optimizer.step()  # makes the state
    else:
        moments: tuple[list[Tensor], list[Tensor], list[Tensor]] = [state["exp_avg"]], [state["exp_avg_sq"]], []
        beta1, beta2 = group["betas"]
        with torch.no_grad():
            adam(
                [parameter], [parameter.grad], *moments, [state["step"]], fused=True, amsgrad=False, beta1=beta1,
                beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
            )  # fmt: skip
    parameter.grad = None


def initial_gaussians(views: OrbitViews, settings: FitSettings, seed: int) -> Gaussians:
    """The splats a fit starts from, on the CPU: on the visual hull, or in a ball about the centre as in the paper.

    Raises:
        InputError: The silhouettes have no common volume.
    """
    generator = torch.Generator().manual_seed(seed)
    # Also for "ball": views that share no volume cannot be fitted from any start.
    points, colors, spacing = hull_points(views, settings.points, seed)
    count = len(points)
    if settings.init == "ball":
        reach = float(np.linalg.norm(points, axis=1).max())
        directions = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
        means = directions * torch.rand(count, 1, generator=generator) ** (1 / 3) * reach
        shades, size = torch.full((count, 3), 0.5), 0.02 * 2 * reach
    else:
        means, shades, size = torch.from_numpy(points), torch.from_numpy(colors), 0.4 * spacing
    return Gaussians(
        means=means,
        quats=torch.randn(count, 4, generator=generator),
        scales=torch.full((count, 3), size),
        opacities=torch.full((count,), INITIAL_OPACITY),
        colors=shades,
    )
