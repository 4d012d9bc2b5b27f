"""The operations of depth fusion: numba and scipy on the CPU, torch on other devices, equal but for rounding."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.mesh.fusion import ops_numba, ops_torch
from im3d.mesh.fusion.silhouettes import Grid
from im3d.splats.depth import DepthMaps
from im3d.splats.gaussians import Gaussians


class Operations(Protocol):
    """One module for each kind of device; all tensors lie on the device, and what is returned does too."""

    def blending_weights(self, gaussians: Gaussians, cameras: Cameras) -> Tensor:
        """(C, N) sum of the blending weights of each splat in each image, in pixels."""

    def median_depth(self, gaussians: Gaussians, cameras: Cameras, seen_from: Tensor) -> DepthMaps:
        """Depth maps of C cameras; `seen_from` (N, 3) is that of `seen_directions`."""

    def signed_distances(self, alpha: Tensor, limit: float) -> tuple[Tensor, float]:
        """`silhouettes.signed_distances` of C pictures.

        Args:
            alpha: (C, S, S) float32 coverage in [0, 1].
            limit: Pixels up to which the distances must be exact; beyond, they need only be larger than that.

        Returns:
            (C, SUBPIXELS·S, SUBPIXELS·S) pixels, positive outside, and the limit up to which they are exact.
        """

    def hull_field(self, distances: Tensor, cameras: Cameras, grid: Grid, cut: float) -> Tensor:
        """`silhouettes.hull_field`: (n, n, n) world units, exact as far as the distances and `cut` go."""

    def fuse(
        self,
        maps: DepthMaps,
        cameras: Cameras,
        real: int,
        carves: NDArray[np.bool_],
        hull: Tensor,
        grid: Grid,
        truncation: float,
        occlusion_vote: float,
    ) -> Tensor:
        """Weighted mean over the cameras of (depth − z)/truncation, each vote clamped to [−1, 1].

        A voxel more than the truncation behind a surface gets a vote of −1 with a small weight: without it a single
        view that sees through a crack hollows the object out. Virtual cameras vote only where they see front sides.

        Args:
            maps: Of the C cameras.
            cameras: C cameras; the first `real` are those of the input views.
            carves: (C,) which of them may carve: vote for free space outside their silhouettes.
            hull: (n, n, n) signed distance to the visual hull, in world units.
            grid: Of the hull.
            truncation: World units.
            occlusion_vote: The weight of votes behind a surface; others weigh 1.

        Returns:
            (n, n, n) in [−1, 1], positive outside; 1 where the hull is farther than the truncation.
        """

    def dilated(self, mask: Tensor, steps: int, corners: bool = False) -> Tensor:
        """(X, Y, Z) bool, grown `steps` times to the 6 face neighbours, or with `corners` to all 26."""

    def eroded(self, mask: Tensor, steps: int, border: bool) -> Tensor:
        """(X, Y, Z) bool, shrunk `steps` times by the 6 face neighbours; beyond the volume lies `border`."""

    def connected_to_corner(self, mask: Tensor) -> Tensor:
        """The part of a mask (X, Y, Z) that is connected by faces to voxel (0, 0, 0), which must be in it."""

    def smoothed(self, volume: Tensor, deviation: float) -> Tensor:
        """A volume under a Gaussian filter: mirrored at the borders, cut off at 4 standard deviations (voxels)."""


def operations_on(device: torch.device) -> Operations:
    """The operations that work with tensors on `device`."""
    if device.type == "cpu":
        return ops_numba
    return ops_torch
