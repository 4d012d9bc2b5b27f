"""Orbits by Stable Video 3D (Voleti et al. 2024), the closest public relative of the paper's generator (3.1).

The model generates K views at azimuths 360°·k/K for k = 1 … K: its last view is the input view. This module rolls them
by one, so that outside of it view 0 is the input view and positive azimuths turn as in `im3d.core.orbit`.

Sampling is that of the paper (3.4): DPM-Solver++ from pure noise for the first orbit, and from noised latents of the
splats' renders for a refinement. The denoiser is EDM's with σ_data = 1 and v-prediction F:

    D(x, σ) = x / (σ² + 1) − σ / √(σ² + 1) · F(x / √(σ² + 1), ln(σ)/4)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.images import OrbitViews, over, resized
from im3d.core.orbit import DEFAULT_FOV_DEG, DEFAULT_RADIUS, Orbit
from im3d.core.progress import Progress
from im3d.errors import InputError
from im3d.generators.base import Subject, ViewFacts
from im3d.generators.sampling import Denoiser, dpm_solver_2m, guided, karras_sigmas, noised, restart_sigmas
from im3d.generators.sv3d import compile as sv3d_compile
from im3d.generators.sv3d.network import (
    LATENT_SCALE,
    LATENT_STRIDE,
    SV3D_P,
    SV3D_U,
    UNET_STRIDE,
    Sv3dConfig,
    Sv3dNetworks,
    clip_pixels,
    conditioning_vectors,
)
from im3d.models.cache import MODELS
from im3d.models.catalog import find_model, require
from im3d.models.memory_modes import MemoryMode, choose_mode, out_of_memory_explained, placed
from im3d.views.framing import DEFAULT_RATIO
from im3d.views.masks import Segment
from im3d.views.view_masks import isolate_views

FloatArray = NDArray[np.float32]
Name = Literal["sv3d_u", "sv3d_p"]

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0
# The elevation that sv3d_p receives where none is known: in the middle of its training range of −5° … 30°.
DEFAULT_ELEVATION_DEG = 12.0


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of the U-Net, on its device.

    Attributes:
        context: (1, 1, C) projected image embedding.
        latent: (1, 4, h, w) latent of the input picture, not scaled.
        vectors: (K, V) one for each view, in the model's order.
    """

    context: Tensor
    latent: Tensor
    vectors: Tensor


class Sv3dGenerator:
    """`sv3d_u` (elevation of the input picture, unknown to it) or `sv3d_p` (elevation given) as a `Generator`.

    The weights are read at the first use and stay in memory until `release`.

    Args:
        name: Which of the two.
        device: Where to compute.
        elevation_deg: Elevation of the cameras. An input of `sv3d_p`; for `sv3d_u` it is only recorded.
        views: K; 21 as trained, 16 as in the paper.
        size: Side of the views, a multiple of 64; 576 as trained, 512 as in the paper.
        steps: Denoising steps of the first orbit.
        guidance: Scale of the classifier-free guidance opposite the input view; 1 at the input view.
        memory: Name of a memory mode ("24", "12", "8"), or "auto" to choose by the free memory.
        segment: A segmentation network for views whose background is not plain.
        checkpoint: The weights; by default those that `im3d models download` installed.
        config: Sizes of the networks in `checkpoint`.
        networks: Networks that are in memory already, instead of a checkpoint.
        finetuned: Temporal layers of `im3d train finetune`, laid over the checkpoint's.
        compiled: Whether the U-Net's blocks are compiled at their first use (`sv3d_compile`).

    Raises:
        InputError: The size or the number of steps does not suit, or nothing can be compiled here.
    """

    framing = DEFAULT_RATIO
    input_frame = 0
    can_refine = True
    # σ_r ≈ 3.9. The paper says ten steps and no level (3.4). Half of a DDPM schedule, where pictures are usually
    # restarted, is σ ≈ 1.7; half of this ladder would be σ ≈ 16, nearly a fresh sample. In between, 3.9 still shows the
    # shape and hides the detail that renders get wrong (docs/lab/performance.md, "Where a refinement restarts"). Not
    # measured with the real weights, which were not at hand.
    refine_noise = 0.375

    def __init__(
        self,
        name: Name,
        device: torch.device | str,
        elevation_deg: float | None = None,
        views: int = 21,
        size: int = 576,
        steps: int = 20,
        guidance: float = 2.5,
        memory: str = "auto",
        segment: Segment | None = None,
        checkpoint: Path | None = None,
        config: Sv3dConfig | None = None,
        networks: Sv3dNetworks | None = None,
        finetuned: Path | None = None,
        compiled: bool = False,
    ) -> None:
        if size % (LATENT_STRIDE * UNET_STRIDE):
            raise InputError(f"SV3D cannot make views of {size} pixels.", "Use a multiple of 64, such as 512 or 576.")
        if steps < 1:
            raise InputError(f"SV3D cannot sample in {steps} steps.", "Use sv3d.steps from 1; the default is 20.")
        if name == "sv3d_p" and elevation_deg is None:
            elevation_deg = DEFAULT_ELEVATION_DEG
        self.name: str = name
        self.takes_elevation = name == "sv3d_p"
        self.size = size
        self.orbit = Orbit.uniform(views, elevation_deg, DEFAULT_FOV_DEG, DEFAULT_RADIUS)
        self.network_calls = 0
        self._device = torch.device(device)
        obstacle = sv3d_compile.unavailable_reason(self._device) if compiled else ""
        if obstacle:
            raise InputError(obstacle, "Leave sv3d.compile out.")
        self._steps, self._guidance, self._memory = steps, guidance, memory
        self._segment = None if segment is None else _one_at_a_time(segment)
        self._checkpoint = checkpoint
        self._config = config or (SV3D_P if name == "sv3d_p" else SV3D_U)
        self._given, self._finetuned, self._compiled = networks, finetuned, compiled
        self._networks: Sv3dNetworks | None = None
        self._mode: MemoryMode | None = None

    def generate(self, subject: Subject | None, seed: int, progress: Progress) -> OrbitViews:
        """The orbit of a subject, from noise; see `Generator.generate`."""
        assert subject is not None
        sigmas = karras_sigmas(self._steps, SIGMA_MIN, SIGMA_MAX)
        latents = torch.zeros(len(self.orbit), 4, *(2 * [self.size // LATENT_STRIDE]))
        x = noised(latents, math.sqrt(SIGMA_MAX**2 + 1), _noise_generator(seed))
        return self._views(subject, self.orbit, lambda: x, sigmas, progress)

    def refine(
        self, subject: Subject, renders: OrbitViews, noise: float, steps: int, seed: int, progress: Progress
    ) -> OrbitViews:
        """Renders of the splats, noised and denoised again; see `Generator.refine`.

        Args:
            renders: Views of this generator's azimuths. For `sv3d_p` their elevation may be any: it is an input of
                the model.
        """
        if renders.orbit.azimuths_deg != self.orbit.azimuths_deg:
            raise ValueError("the renders are not of this generator's azimuths")
        sigmas = restart_sigmas(steps, noise, SIGMA_MIN, SIGMA_MAX)
        pictures = in_model_order(over(renders.resized(self.size).rgba))
        generator = _noise_generator(seed)
        start = lambda: noised(self.encode(pictures), sigmas[0], generator)  # noqa: E731 - runs once memory is arranged
        return self._views(subject, renders.orbit, start, sigmas, progress)

    def facts(self) -> ViewFacts:
        """A network's; the elevation of `sv3d_p` is the usual one where none was given."""
        return ViewFacts(elevation_source="prior")

    def release(self) -> None:
        """Frees the memory of the networks; the next use reads them again, or takes them from `MODELS`."""
        self._networks = self._mode = None
        MODELS.rest()

    @torch.inference_mode()
    def _views(
        self, subject: Subject, orbit: Orbit, start: Callable[[], Tensor], sigmas: Tensor, progress: Progress
    ) -> OrbitViews:
        """The views of `orbit`: latents from `start` denoised down the ladder, decoded and cut out."""
        picture = subject.rgba if len(subject.rgba) == self.size else resized(subject.rgba, self.size, self.size)
        steps = len(sigmas)  # the last is the decoding
        progress(0, steps)
        with out_of_memory_explained(self.name, self._chosen_mode()):
            conditioning = self.condition(over(picture), orbit)
            x = start().to(self._device)
            with placed(self._loaded().unet, self._device, self._chosen_mode()):
                x = dpm_solver_2m(self.denoiser(conditioning), x, sigmas, lambda i, _, __: progress(i, steps))
            rgba = self.cut_outs(self.decode(in_orbit_order(x)), orbit)
        if self.name == "sv3d_u" or orbit.elevation_deg == self.orbit.elevation_deg:
            # The model generates its input view again; the input itself is truer. `sv3d_u` always keeps its elevation.
            rgba[self.input_frame] = picture
        progress(steps, steps, rgba[0])
        return OrbitViews(rgba, orbit)

    def condition(self, picture: FloatArray, orbit: Orbit) -> Conditioning:
        """The conditioning by a picture (S, S, 3) on white and by the cameras of `orbit`."""
        networks, mode = self._loaded(), self._chosen_mode()
        pixels = _as_pixels([picture]).to(self._device)
        with placed(networks.image_encoder, self._device, mode):
            seen = clip_pixels(pixels, self._config.clip_size).to(networks.image_encoder.dtype)
            context = networks.image_encoder(seen).image_embeds[:, None]
        with placed(networks.vae, self._device, mode):
            latent = networks.vae.encode(2 * pixels.to(networks.vae.dtype) - 1).latent_dist.mode()
        azimuths = [*orbit.azimuths_deg[1:], orbit.azimuths_deg[0]]
        vectors = conditioning_vectors(self._config, azimuths, orbit.elevation_deg)
        dtype = networks.unet.dtype
        return Conditioning(context.to(dtype), latent.to(dtype), vectors.to(self._device, dtype))

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        """D(x, σ) with guidance, for latents (K, 4, h, w) float32 in the model's order."""
        unet, mode = self._loaded().unet, self._chosen_mode()
        K = len(conditioning.vectors)
        scale = guidance_scales(K, self._guidance).to(self._device).view(K, 1, 1, 1)
        context = torch.cat([conditioning.context, torch.zeros_like(conditioning.context)])
        latent = conditioning.latent.expand(K, -1, -1, -1)
        latents = torch.stack([latent, torch.zeros_like(latent)])
        vectors = conditioning.vectors.expand(2, -1, -1)

        def network(x: Tensor, level: Tensor, half: slice) -> Tensor:
            """F for the conditional half (0), the unconditional one (1), or both."""
            sample = torch.cat([x.expand(len(latents[half]), *x.shape), latents[half]], dim=2)
            return unet(sample, level, context[half], vectors[half]).float()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            self.network_calls += 2
            sigma = sigma.to(self._device)
            scaled = (x / (sigma**2 + 1).sqrt()).to(latents.dtype)
            level = sigma.log() / 4
            if mode.batched_guidance:
                conditional, unconditional = network(scaled, level, slice(0, 2))
            else:
                (conditional,) = network(scaled, level, slice(0, 1))
                (unconditional,) = network(scaled, level, slice(1, 2))
            v = guided(conditional, unconditional, scale)
            return x / (sigma**2 + 1) - sigma / (sigma**2 + 1).sqrt() * v

        return denoise

    def encode(self, pictures: FloatArray) -> Tensor:
        """Scaled latents (K, 4, h, w) float32 of pictures (K, S, S, 3) in [0, 1]."""
        vae, mode = self._loaded().vae, self._chosen_mode()
        with placed(vae, self._device, mode):
            latents = [
                vae.encode(2 * chunk.to(self._device, vae.dtype) - 1).latent_dist.mode()
                for chunk in _as_pixels(pictures).split(mode.chunk)
            ]
        return LATENT_SCALE * torch.cat(latents).float()

    def decode(self, latents: Tensor) -> Iterator[FloatArray]:
        """Pictures (S, S, 3) float32 in [0, 1] of scaled latents (K, 4, h, w), each as soon as it is there."""
        vae, mode = self._loaded().vae, self._chosen_mode()
        with placed(vae, self._device, mode):
            for chunk in latents.split(mode.chunk):
                pictures = vae.decode(chunk.to(vae.dtype) / LATENT_SCALE).sample.float()
                rgb = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
                yield from rgb.cpu().numpy()

    def cut_outs(self, pictures: Iterable[FloatArray], orbit: Orbit) -> FloatArray:
        """Drawn views (S, S, 3), whose backgrounds are nearly white, with alpha, (K, S, S, 4).

        The work is done on all of the processor's cores, most of it while other views are decoded.

        Raises:
            InputError: A view shows no object; of several, the first one is named.
        """
        opaque = (np.dstack([rgb, np.ones(rgb.shape[:2], np.float32)]) for rgb in pictures)
        try:
            return np.stack([view.rgba for view in isolate_views(opaque, orbit, self._segment)])
        except InputError as error:
            raise InputError(
                f"{self.name} drew no object before a plain background ({error.message})",
                "Try another seed or a clearer picture, or download the background remover.",
                error.remedy,
            ) from error

    def _chosen_mode(self) -> MemoryMode:
        if self._mode is None:
            self._mode = choose_mode(self._memory, self._device)
        return self._mode

    def _loaded(self) -> Sv3dNetworks:
        if self._networks is None:
            self._networks = self._kept() if self._given is None else self._arranged(self._given)
        return self._networks

    def _kept(self) -> Sv3dNetworks:
        """Those that an earlier job read, or else read from the checkpoint."""
        from im3d.generators.sv3d.weights import load_networks

        path = self._checkpoint or require(self.name) / find_model(self.name).files[0]
        half = torch.float16 if self._device.type == "cuda" else torch.float32

        def read() -> Sv3dNetworks:
            return self._arranged(load_networks(path, self._config, half, torch.float32, self._finetuned))

        files = [path] if self._finetuned is None else [path, self._finetuned]
        options = (self._config, half, self._chosen_mode().chunked_feed_forward, self._compiled)
        return MODELS.get("sv3d", files, options, read)

    def _arranged(self, networks: Sv3dNetworks) -> Sv3dNetworks:
        if self._chosen_mode().chunked_feed_forward:
            networks.unet.enable_forward_chunking()
        if self._compiled:
            sv3d_compile.compile_blocks(networks.unet)
        return networks


def _one_at_a_time(segment: Segment) -> Segment:
    """The network for threads: one of them uses it at a time, and none keeps what a gradient would need."""
    lock = threading.Lock()

    def locked(rgb: FloatArray) -> FloatArray:
        with lock, torch.inference_mode():  # the mode is a thread's own
            return segment(rgb)

    return locked


def guidance_scales(views: int, highest: float) -> Tensor:
    """SV3D's triangle: 1 at the input view, `highest` opposite it. (K,) in the model's order."""
    position = torch.linspace(0, 1, views)
    return 1 + (highest - 1) * (1 - (2 * position - 1).abs())


def in_model_order(views: FloatArray) -> FloatArray:
    """Views (K, …) from the orbit's order, input first, to the model's, input last."""
    return np.roll(views, -1, axis=0)


def in_orbit_order(views: Tensor) -> Tensor:
    """The inverse of `in_model_order`."""
    return views.roll(1, dims=0)


def _as_pixels(pictures: FloatArray | list[FloatArray]) -> Tensor:
    """(K, S, S, 3) pictures as a (K, 3, S, S) tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(pictures), -1, 1)))


def _noise_generator(seed: int) -> torch.Generator:
    """Noise sampled on the CPU is the same on every machine."""
    return torch.Generator("cpu").manual_seed(seed)
