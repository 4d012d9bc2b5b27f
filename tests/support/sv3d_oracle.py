"""An SV3D generator that knows the true views, for what happens around its networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from im3d.core.images import FloatArray, OrbitViews, over
from im3d.core.orbit import Orbit
from im3d.generators.sv3d.generator import Conditioning, Sv3dGenerator, in_model_order


class Oracle(Sv3dGenerator):
    """Knows the true views: its denoiser always answers with them. Latents are 8×8 block means."""

    def __init__(self, truth: OrbitViews, **options: object) -> None:
        orbit = truth.orbit
        super().__init__("sv3d_p", "cpu", orbit.elevation_deg, len(orbit), truth.size, steps=4, **options)  # type: ignore[arg-type]
        self.truth = truth

    def condition(self, picture: FloatArray, orbit: Orbit) -> Conditioning:
        self.asked = picture, orbit
        return Conditioning(torch.zeros(1), torch.zeros(1), torch.zeros(len(orbit), 1))

    def denoiser(self, conditioning: Conditioning):  # type: ignore[no-untyped-def]
        answer = self.encode(in_model_order(over(self.truth.rgba)))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            self.network_calls += 1
            return answer

        return denoise

    def encode(self, pictures: FloatArray) -> Tensor:
        blocks = torch.from_numpy(np.moveaxis(pictures, -1, 1).copy())
        rgb = torch.nn.functional.avg_pool2d(blocks, 8)
        return torch.cat([rgb, torch.zeros_like(rgb[:, :1])], dim=1)

    def decode(self, latents: Tensor) -> FloatArray:
        rgb = latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return np.ascontiguousarray(np.moveaxis(rgb.numpy(), 1, -1))

    def _loaded(self):  # type: ignore[no-untyped-def]
        class Nothing:
            unet = torch.nn.Identity()

        return Nothing()
