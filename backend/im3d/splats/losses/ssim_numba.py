"""Structural similarity of one scale on the CPU, forward and backward in numba.

The same numbers as the torch version in `losses`, which needs about fifty passes over memory forward and backward; here
each plane is filtered in a few passes whose inner loops run along rows. On two cores this takes a fifth of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

F = np.float32


def similarity(x: Tensor, y: Tensor, mean_y: Tensor, var_y: Tensor, window: Tensor, luminance: bool) -> Tensor:
    """Mean over the inside of every plane of the contrast-structure term, with `luminance` times the luminance term.

    Args:
        x: (B, C, H, W) float32, differentiable.
        y: The target, same shape.
        mean_y, var_y: Its local statistics, (B, C, H − n + 1, W − n + 1).
        window: (n,) Gaussian window.
        luminance: Whether the luminance term is included (SSIM instead of contrast-structure alone).

    Returns:
        (B, C).
    """
    result: Tensor = _Similarity.apply(x, y, mean_y, var_y, window, luminance)
    return result


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, mean_y: Tensor, var_y: Tensor, window: Tensor, luminance: bool
    ) -> Tensor:
        B, C, H, W = x.shape
        planes = [t.detach().contiguous().numpy().reshape(B * C, *t.shape[2:]) for t in (x, y, mean_y, var_y)]
        taps = window.numpy()
        inner = (B * C, H - len(taps) + 1, W - len(taps) + 1)
        gradients = tuple(np.empty(inner, np.float32) for _ in range(3))
        values = np.empty(B * C, np.float32)
        _forward(*planes, taps, luminance, values, *gradients)
        ctx.saved = (planes, taps, gradients)
        return torch.from_numpy(values).view(B, C)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        planes, taps, gradients = ctx.saved
        dx = np.empty_like(planes[0])
        upstream = gradient[0].contiguous().numpy().reshape(-1)
        _backward(planes[0], planes[1], taps, upstream, *gradients, dx)
        return torch.from_numpy(dx).view(*gradient[0].shape, *dx.shape[1:]), None, None, None, None, None


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _forward(x, y, mean_y, var_y, taps, luminance, values, g_mean, g_square, g_cross):  # type: ignore[no-untyped-def]
    """Values, and the derivative of each plane's mean with respect to the three filtered maps."""
    C1 = F(0.01**2)
    C2 = F(0.03**2)
    n = len(taps)
    planes, H, W = x.shape
    h = H - n + 1
    w = W - n + 1
    rows = np.empty((planes, h), np.float32)
    share = F(1.0) / F(h * w)
    for job in prange(planes * h):
        p = job // h
        i = job % h
        v0 = np.zeros(W, np.float32)
        v1 = np.zeros(W, np.float32)
        v2 = np.zeros(W, np.float32)
        for k in range(n):
            t = taps[k]
            xr = x[p, i + k]
            yr = y[p, i + k]
            for j in range(W):
                v0[j] += t * xr[j]
                v1[j] += t * xr[j] * xr[j]
                v2[j] += t * xr[j] * yr[j]
        m = np.zeros(w, np.float32)
        s = np.zeros(w, np.float32)
        c = np.zeros(w, np.float32)
        for k in range(n):
            t = taps[k]
            for j in range(w):
                m[j] += t * v0[j + k]
                s[j] += t * v1[j + k]
                c[j] += t * v2[j + k]
        total = F(0.0)
        for j in range(w):
            my = mean_y[p, i, j]
            D = F(1.0) / (s[j] - m[j] * m[j] + var_y[p, i, j] + C2)
            cs = (F(2.0) * (c[j] - m[j] * my) + C2) * D
            d_cross = F(2.0) * D
            d_square = -cs * D
            d_mean = F(2.0) * D * (cs * m[j] - my)
            if luminance:
                L = F(1.0) / (m[j] * m[j] + my * my + C1)
                light = (F(2.0) * m[j] * my + C1) * L
                d_mean = d_mean * light + cs * F(2.0) * L * (my - light * m[j])
                d_cross *= light
                d_square *= light
                cs *= light
            total += cs
            g_mean[p, i, j] = d_mean * share
            g_square[p, i, j] = d_square * share
            g_cross[p, i, j] = d_cross * share
        rows[p, i] = total
    for p in range(planes):
        values[p] = F(rows[p].astype(np.float64).sum() * share)


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _backward(x, y, taps, upstream, g_mean, g_square, g_cross, dx):  # type: ignore[no-untyped-def]
    """dx = u·(Wᵀ g_mean + 2x·Wᵀ g_square + y·Wᵀ g_cross), W the window."""
    n = len(taps)
    planes, H, W = x.shape
    h = H - n + 1
    w = W - n + 1
    for job in prange(planes * H):
        p = job // H
        i = job % H
        v0 = np.zeros(w + 2 * n, np.float32)
        v1 = np.zeros(w + 2 * n, np.float32)
        v2 = np.zeros(w + 2 * n, np.float32)
        for k in range(max(0, i - h + 1), min(n, i + 1)):
            t = taps[k]
            a = g_mean[p, i - k]
            b = g_square[p, i - k]
            c = g_cross[p, i - k]
            for j in range(w):
                v0[j + n] += t * a[j]
                v1[j + n] += t * b[j]
                v2[j + n] += t * c[j]
        m = np.zeros(W, np.float32)
        s = np.zeros(W, np.float32)
        c2 = np.zeros(W, np.float32)
        for k in range(n):
            t = taps[k]
            for j in range(W):
                m[j] += t * v0[j + n - k]
                s[j] += t * v1[j + n - k]
                c2[j] += t * v2[j + n - k]
        for j in range(W):
            dx[p, i, j] = upstream[p] * (m[j] + F(2.0) * x[p, i, j] * s[j] + y[p, i, j] * c2[j])
