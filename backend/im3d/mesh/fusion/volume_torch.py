"""What the field needs of `scipy.ndimage`, for volumes (X, Y, Z) in plain torch: morphology, filling and smoothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dilated(mask: Tensor, steps: int, corners: bool = False) -> Tensor:
    """`binary_dilation`, `steps` times, to the 6 voxels beside each, or with `corners` to all 26 around it."""
    for _ in range(steps):
        source, mask = mask, mask.clone()
        for axis in range(3):
            n = mask.shape[axis] - 1
            mask.narrow(axis, 1, n).logical_or_(source.narrow(axis, 0, n))
            mask.narrow(axis, 0, n).logical_or_(source.narrow(axis, 1, n))
            if corners:  # what this axis added goes on along the next
                source = mask.clone()
    return mask


def eroded(mask: Tensor, steps: int, border: bool) -> Tensor:
    """`binary_erosion` by the 6 voxels beside each, `steps` times; beyond the volume lies `border`."""
    for _ in range(steps):
        source, mask = mask, mask.clone()
        for axis in range(3):
            n = mask.shape[axis] - 1
            mask.narrow(axis, 1, n).logical_and_(source.narrow(axis, 0, n))
            mask.narrow(axis, 0, n).logical_and_(source.narrow(axis, 1, n))
            if not border:
                mask.select(axis, 0).fill_(False)
                mask.select(axis, n).fill_(False)
    return mask


def connected_to_corner(mask: Tensor) -> Tensor:
    """The part of the mask that is connected, by faces, to voxel (0, 0, 0), which must be in it."""
    reached = torch.zeros_like(mask)
    reached[0, 0, 0] = True
    found = 0
    while found < (count := int(reached.sum())):
        found = count
        for axis in range(3):
            reached = _spread(reached, mask, axis)
    return reached


def _spread(reached: Tensor, mask: Tensor, axis: int) -> Tensor:
    """Carries `reached` along one axis, both ways, up to the next voxel that is not in the mask."""
    index = torch.arange(1, mask.shape[axis] + 1, dtype=torch.int32, device=mask.device)
    index = index.view([-1 if k == axis else 1 for k in range(3)])
    for _ in range(2):
        # A wall is an even number, a reached voxel an odd one: the last that was met decides.
        met = torch.where(mask, torch.where(reached, 2 * index + 1, 0), 2 * index)
        reached = (met.cummax(dim=axis).values % 2 == 1).flip(axis)
        mask = mask.flip(axis)
    return reached


def smoothed(volume: Tensor, deviation: float) -> Tensor:
    """`gaussian_filter`: mirrored at the borders, cut off at 4 standard deviations."""
    radius = int(4 * deviation + 0.5)
    weights = [math.exp(-0.5 * (k / deviation) ** 2) for k in range(-radius, radius + 1)]
    total = sum(weights)
    for axis in range(3):
        n = volume.shape[axis]
        index = torch.arange(-radius, n + radius, device=volume.device) % (2 * n)
        padded = volume.index_select(axis, torch.where(index < n, index, 2 * n - 1 - index))
        volume = torch.zeros_like(volume)
        for k, weight in enumerate(weights):
            volume.add_(padded.narrow(axis, k, n), alpha=weight / total)
    return volume
