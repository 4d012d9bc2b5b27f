"""`mini`: our own orbit generator. 16 RGBA views and the elevation, from one picture, on any machine.

The network's views have 128 pixels a side. They are handed on at twice that, because the input picture stays among
them: what it shows sharply should be sharp on the object.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.devices import fast_in_half
from im3d.core.images import OrbitViews, premultiplied, resized
from im3d.core.orbit import DEFAULT_FOV_DEG, DEFAULT_RADIUS, Orbit
from im3d.core.progress import Progress, silent
from im3d.errors import InputError, ModelError, OutOfMemoryError
from im3d.generators.base import Subject, ViewFacts
from im3d.generators.mini.layers import channels_last
from im3d.generators.mini.model import VolumeDenoiser, from_model, to_model
from im3d.generators.sampling import karras_sigmas, noised, renoised, restart_sigmas
from im3d.models.cache import MODELS
from im3d.models.catalog import SHIPPED
from im3d.settings import MiniSettings
from im3d.shared.names import MAX_ELEVATION_DEG
from im3d.shared.paths import models_folder

FloatArray = NDArray[np.float32]

# The noise ladder at 64 pixels. It scales with the side of the pictures: averaging blocks of pixels halves the noise
# with each halving of the side, so that a level hides the same content at any size.
SIGMA_MIN, SIGMA_MAX = 0.05, 40.0
DEFAULT_STEPS = MiniSettings.steps
SHIPPED_WEIGHTS = SHIPPED / "mini"
# Side of the views over that of the network's.
ENLARGED = 2
# Alpha from which a pixel of a first orbit's views counts as the object. Of levels from 0.3 to 0.5 this gave the
# best mask IoU on validation props (0.757 for 0.751) at 0.1 dB, and better meshes (docs/lab/training-log.md).
OPAQUE_FROM = 0.4
# Rows and columns by which views are shifted before the decoder. Its checkerboard artefact repeats every two and four
# pixels; of the sets of four shifts that were tried, the mean over these is nearest to the mean over all.
SHIFTS = ((0, 0), (1, 2), (2, 0), (3, 2))


class MiniGenerator:
    """`mini` as a `Generator`. The weights are read at the first use.

    Args:
        device: Where to compute.
        steps: Denoising steps of the first orbit.
        views: K, a divisor of the ring's 16 that is at least 4.
        elevation_deg: Elevation of the input view where it is known. None: the network predicts it from the picture.
        weights: Folder with config.json and safetensors; by default the shipped ones, or else `mini` in the folder of
            installed models.

    Raises:
        InputError: Steps or views are out of range.
        ModelError: The weights are not installed.
    """

    name = "mini"
    # Of the props that it was trained on, whose bounding spheres touch the border, the median is .79; the elevation is
    # found best a little below, and what reaches far into the depth needs room (docs/lab/training-log.md).
    framing = 0.75
    input_frame = 0
    can_refine = True
    takes_elevation = False
    refine_noise = 0.5

    def __init__(
        self,
        device: torch.device | str = "cpu",
        steps: int = DEFAULT_STEPS,
        views: int = MiniSettings.views,
        elevation_deg: float | None = None,
        weights: Path | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._steps = steps
        self._folder = weights or mini_weights()
        config = _config(self._folder)
        self._network_size, ring = int(config["sample_size"]), int(config["views"])
        self.size = ENLARGED * self._network_size
        if steps < 1:
            raise InputError(f"mini.steps cannot be {steps}.", "Give 1 or more.")
        if views < 4 or ring % views:
            raise InputError(f"mini.views cannot be {views}.", f"mini makes {ring} views, or 8 or 4 of them.")
        self._every = ring // views
        self.orbit = Orbit.uniform(views, elevation_deg, DEFAULT_FOV_DEG, DEFAULT_RADIUS)
        self.network_calls = 0
        self._model: VolumeDenoiser | None = None

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        """The orbit of a subject, from noise; see `Generator.generate`."""
        assert subject is not None
        return self._views(subject, None, None, self._steps, seed, progress)

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Renders of the splats, noised and denoised again; see `Generator.refine`. Their elevation is kept.

        Args:
            renders: Views of this generator's azimuths.
            noise: Share of the noise ladder.
            steps: Restarts that are averaged; see `sample_orbit`.
        """
        if renders.orbit.azimuths_deg != self.orbit.azimuths_deg:
            raise ValueError("the renders are not of this generator's azimuths")
        return self._views(subject, renders.resized(self._network_size), noise, steps, seed, progress)

    def facts(self) -> ViewFacts:
        """A network's; it predicts the elevation too."""
        return ViewFacts()

    def release(self) -> None:
        """Frees the memory of the network; the next use reads it again, or takes it from `MODELS`."""
        self._model = None
        MODELS.rest()

    def _views(
        self,
        subject: Subject,
        renders: OrbitViews | None,
        noise: float | None,
        steps: int,
        seed: int,
        progress: Progress,
    ) -> OrbitViews:
        picture = _at_size(subject.rgba, self._network_size)
        start = None if renders is None else _as_tensor(renders.rgba)[None].to(self._device)
        known = self.orbit.elevation_deg if renders is None else renders.orbit.elevation_deg
        before, each = self.network_calls, len(SHIFTS) if renders is None else 1

        def counted(step: int, steps: int, preview: FloatArray | None = None) -> None:
            self.network_calls = before + step * each
            progress(step, steps, preview)

        try:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=fast_in_half(self._device)):
                views, elevation = sample_orbit(
                    self._loaded(),
                    _as_tensor(picture)[None].to(self._device),
                    steps,
                    torch.Generator("cpu").manual_seed(seed),
                    elevation_deg=None if known is None else torch.tensor([known], device=self._device),
                    start=start,
                    noise=1.0 if noise is None else noise,
                    every=self._every,
                    progress=counted,
                )
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemoryError(
                "mini does not fit into the memory of the GPU.", "Close other programs that use it, or use the CPU."
            ) from error
        angle = float(elevation[0].clamp(-MAX_ELEVATION_DEG, MAX_ELEVATION_DEG)) if known is None else known
        orbit = Orbit(self.orbit.azimuths_deg, angle, self.orbit.fov_deg, self.orbit.radius)
        finished = OrbitViews(_straight(views[0]), orbit).resized(self.size)
        finished.rgba[self.input_frame] = _at_size(subject.rgba, self.size)
        return finished

    def _loaded(self) -> VolumeDenoiser:
        if self._model is None:
            model = MODELS.get("mini", [self._folder], (), lambda: _read(self._folder))
            channels_last(model.to(self._device))
            self._model = model
        return self._model


def _read(folder: Path) -> VolumeDenoiser:
    """The network in the computer's memory, in evaluation mode.

    Raises:
        ModelError: The folder does not hold the weights.
    """
    try:
        model: VolumeDenoiser = VolumeDenoiser.from_pretrained(folder, torch_dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The weights of mini in {folder} cannot be read.", "Install im3d again.") from error
    model.eval()
    return model


@torch.inference_mode()
def sample_orbit(
    model: VolumeDenoiser,
    condition: Tensor,
    steps: int,
    generator: torch.Generator,
    elevation_deg: Tensor | None = None,
    start: Tensor | None = None,
    noise: float = 1.0,
    every: int = 1,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """Orbits denoised in a few steps, each from fresh noise: from nothing, or from noised renders (paper 3.4).

    The volume is predicted once, and each step is conditioned on its views. The input view is known, so it replaces its
    estimate in each step. Without `start`, noise is added to the volume's views, and the steps go down the ladder.

    Renders are noised to the same level in every step, and the estimates averaged. The network is trained to predict
    the conditional mean. One estimate carries the grain of its noise, different in every view, and a ladder adds more;
    the mean of ten carries little, so that views agree better than those of the first orbit (docs/lab/quality.md).

    Where texture cannot be inferred, the decoder leaves a checkerboard artefact fixed to the pixel grid (the perceptual
    loss prefers it to a flat colour). The mean of estimates of views shifted by `SHIFTS` has half of it or less.

    Args:
        model: The denoiser.
        condition: (B, 4, S, S) input views, premultiplied RGBA in [0, 1].
        steps: Denoising steps, or restarts of renders.
        generator: Of the noise.
        elevation_deg: (B,) where it is known; None: the network predicts it from the input view.
        start: (B, K, 4, S, S) renders to restart from, premultiplied RGBA in [0, 1].
        noise: Share of the noise ladder to start at, in (0, 1].
        every: Stride over the views of the ring; K are left.
        progress: Receives each step, with a preview.

    Returns:
        (B, K, 4, S, S) premultiplied RGBA in [0, 1] and (B,) elevations in degrees.
    """
    B, S = len(condition), model.config["sample_size"]
    scale = S / 64
    low, high = SIGMA_MIN * scale, SIGMA_MAX * scale
    sigmas = karras_sigmas(steps, low, high) if noise == 1 else restart_sigmas(steps, noise, low, high)
    sigmas = sigmas.to(condition.device)
    given = to_model(condition)
    ring = torch.arange(0, int(model.config["views"]), every, device=given.device).expand(B, -1)
    volume = model.imagine(given, elevation_deg, ring)
    elevation = volume.shape.elevation_deg if elevation_deg is None else elevation_deg

    def shifted(x: Tensor, sigma: Tensor, shift: tuple[int, int]) -> Tensor:
        denoised: Tensor = model(x, sigma.expand(B), given, elevation_deg, volume, ring, shift).clamp(-1, 1)
        denoised[:, 0] = given
        return denoised

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack([shifted(x, sigma, shift) for shift in SHIFTS]).mean(dim=0)

    def report(step: int, steps: int, denoised: Tensor) -> None:
        progress(step, steps, _contact_sheet(denoised[0]) if progress is not silent else None)

    if start is None:
        first = noised(to_model(volume.views), sigmas[0], generator)
        return opaque_from(from_model(renoised(denoise, first, sigmas, generator, report)), OPAQUE_FROM), elevation
    renders = to_model(start)
    total = torch.zeros_like(renders)
    for step in range(steps):
        estimate = shifted(noised(renders, sigmas[0], generator), sigmas[0], SHIFTS[step % len(SHIFTS)])
        total += estimate
        report(step + 1, steps, estimate)
    return from_model(total / steps), elevation


def opaque_from(views: Tensor, level: float) -> Tensor:
    """Views whose coverage of `level` becomes one half, and others accordingly; the input view stays.

    The network predicts the conditional mean: alpha is one half where the object is as likely there as not. Masks have
    the best IoU with the true ones at a lower threshold.

    Args:
        views: (B, K, 4, S, S) premultiplied RGBA in [0, 1].
        level: In (0, 1).

    Returns:
        Of the same shape; straight colours are what they were.
    """
    alpha = views[:, 1:, 3:]
    # Odds are scaled, so that 0 and 1 stay.
    odds = alpha / (1 - alpha).clamp_min(1e-6) * ((1 - level) / level)
    opaque = odds / (1 + odds)
    rgb = views[:, 1:, :3] * (opaque / alpha.clamp_min(1e-6))
    return torch.cat([views[:, :1], torch.cat([rgb.minimum(opaque), opaque], dim=2)], dim=1)


def mini_weights() -> Path:
    """The folder of mini's weights.

    Raises:
        ModelError: They are not installed.
    """
    for folder in (SHIPPED_WEIGHTS, models_folder() / "mini"):
        if (folder / "config.json").exists():
            return folder
    raise ModelError(
        "The weights of mini are not installed.",
        f"Put them into {models_folder() / 'mini'}, or choose another generator.",
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return data
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no weights of mini.", "Name a folder that training exported.") from error


def _contact_sheet(views: Tensor) -> FloatArray:
    """Four views of (K, 4, S, S), a quarter turn apart, side by side on white: (S, 4·S, 3)."""
    rgba = from_model(views[:: max(1, len(views) // 4)][:4].float()).cpu()
    rgb = (rgba[:, :3] + 1 - rgba[:, 3:]).clamp(0, 1)
    return np.concatenate(list(rgb.permute(0, 2, 3, 1).numpy()), axis=1)


def _at_size(rgba: FloatArray, size: int) -> FloatArray:
    return rgba if len(rgba) == size else resized(rgba, size, size)


def _as_tensor(rgba: FloatArray) -> Tensor:
    """Straight (…, S, S, 4) to premultiplied (…, 4, S, S)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(premultiplied(rgba), -1, -3)))


def _straight(views: Tensor) -> FloatArray:
    """Premultiplied (K, 4, S, S) to straight (K, S, S, 4)."""
    rgba = np.moveaxis(views.float().cpu().numpy(), -3, -1)
    alpha = rgba[..., 3:]
    rgb = np.divide(rgba[..., :3], alpha, out=np.zeros_like(rgba[..., :3]), where=alpha > 1 / 255)
    return np.ascontiguousarray(np.concatenate([rgb.clip(0, 1), alpha], axis=-1), dtype=np.float32)
