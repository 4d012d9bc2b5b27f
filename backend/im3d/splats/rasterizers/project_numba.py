"""The projection of `im3d.splats.rasterizers.project` with its gradient, fused in numba.

On a CPU the many small tensor operations cost as much as rasterizing the splats does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.core.projection import camera_point
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import EPS_2D, MIN_ALPHA, NEAR, Projected

F = np.float32


def project_fused(gaussians: Gaussians, cameras: Cameras, index: int = 0, tilt: Tensor | None = None) -> Projected:
    """`project_views` of one camera, for float32 tensors on the CPU.

    Gradients flow to means, quats, scales and the tilt; none through the depths, which only order the splats here.

    Args:
        gaussians: N splats on the CPU.
        cameras: C cameras that look at the origin.
        index: Which of them.
        tilt: () radians by which the camera is raised above its nominal elevation, still looking at the origin.
    """
    means2d, conics, depths, extents, visible = _Project.apply(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities,
        torch.zeros(()) if tilt is None else tilt, cameras, index,
    )  # fmt: skip
    return Projected(means2d, conics, depths, extents, visible, gaussians.opacities)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        tilt: Tensor,
        cameras: Cameras,
        index: int,
    ) -> tuple[Tensor, ...]:
        n = len(means)
        shape = [t.detach().contiguous().numpy() for t in (means, quats, scales)]
        view = (_raised(cameras.viewmats[index], float(tilt)), F(cameras.focal), F(cameras.size))
        means2d, conics, depths = torch.empty(n, 2), torch.empty(n, 3), torch.empty(n)
        extents, visible = torch.empty(n, 2), torch.empty(n, dtype=torch.bool)
        _forward(
            *shape, opacities.detach().contiguous().numpy(), *view,
            *(t.numpy() for t in (means2d, conics, depths, extents, visible)),
        )  # fmt: skip
        ctx.saved = (shape, view, conics.numpy())
        ctx.mark_non_differentiable(depths, extents, visible)
        return means2d, conics, depths, extents, visible

    @staticmethod
    def backward(ctx: Any, g_means2d: Tensor, g_conics: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        shape, view, conics = ctx.saved
        gradients = [torch.empty(a.shape) for a in shape]
        g_tilt = torch.empty(len(shape[0]))
        _backward(
            *shape, *view, conics, g_means2d.contiguous().numpy(), g_conics.contiguous().numpy(),
            *(g.numpy() for g in gradients), g_tilt.numpy(),
        )  # fmt: skip
        return *gradients, None, g_tilt.sum(), None, None


def _raised(viewmat: NDArray[np.float32], tilt: float) -> NDArray[np.float32]:
    """The view matrix of the camera raised by `tilt` radians: the scene turns about the camera's x axis."""
    cos, sin = math.cos(tilt), math.sin(tilt)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    raised = viewmat.astype(np.float64)
    raised[:3, :3] = turn @ raised[:3, :3]
    return np.ascontiguousarray(raised, np.float32)


@njit(error_model="numpy")
def _rotation(q):  # type: ignore[no-untyped-def]
    """Rows of the rotation of the unit quaternion q, wxyz."""
    w, x, y, z = q
    one, two = F(1), F(2)
    return (
        one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y),
        two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x),
        two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y),
    )  # fmt: skip


@njit(error_model="numpy")
def _unit(quats, i):  # type: ignore[no-untyped-def]
    """The quaternion scaled to length 1, and its length."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    length = max(math.sqrt(w * w + x * x + y * y + z * z), F(1e-12))
    return (w / length, x / length, y / length, z / length), length


@njit(error_model="numpy")
def _axes(V, f, x, y, z, r, s0, s1, s2):  # type: ignore[no-untyped-def]
    """J·R (2, 3), and B = J·R·rotation·scales (2, 3), so that B·Bᵀ is the screen covariance."""
    a, b, c = f / z, -f * x / (z * z), -f * y / (z * z)
    m0, m1, m2 = a * V[0, 0] + b * V[2, 0], a * V[0, 1] + b * V[2, 1], a * V[0, 2] + b * V[2, 2]
    n0, n1, n2 = a * V[1, 0] + c * V[2, 0], a * V[1, 1] + c * V[2, 1], a * V[1, 2] + c * V[2, 2]
    B = (
        (m0 * r[0] + m1 * r[3] + m2 * r[6]) * s0, (m0 * r[1] + m1 * r[4] + m2 * r[7]) * s1,
        (m0 * r[2] + m1 * r[5] + m2 * r[8]) * s2,
        (n0 * r[0] + n1 * r[3] + n2 * r[6]) * s0, (n0 * r[1] + n1 * r[4] + n2 * r[7]) * s1,
        (n0 * r[2] + n1 * r[5] + n2 * r[8]) * s2,
    )  # fmt: skip
    return (m0, m1, m2, n0, n1, n2), B


@njit(parallel=True, cache=True, error_model="numpy")
def _forward(means, quats, scales, opacities, V, f, size, means2d, conics, depths, extents, visible):  # type: ignore[no-untyped-def]
    half = F(0.5) * size
    limit = F(1.3) * half / f
    for i in prange(len(means)):
        p0, p1, p2 = camera_point(V, means[i, 0], means[i, 1], means[i, 2])
        z = max(p2, F(NEAR))
        x = z * min(max(p0 / z, -limit), limit)
        y = z * min(max(p1 / z, -limit), limit)
        q, _ = _unit(quats, i)
        _, B = _axes(V, f, x, y, z, _rotation(q), scales[i, 0], scales[i, 1], scales[i, 2])
        xx = B[0] * B[0] + B[1] * B[1] + B[2] * B[2] + F(EPS_2D)
        xy = B[0] * B[3] + B[1] * B[4] + B[2] * B[5]
        yy = B[3] * B[3] + B[4] * B[4] + B[5] * B[5] + F(EPS_2D)
        det = xx * yy - xy * xy
        conics[i, 0] = yy / det
        conics[i, 1] = -xy / det
        conics[i, 2] = xx / det
        u = f * p0 / z + half
        v = f * p1 / z + half
        means2d[i, 0] = u
        means2d[i, 1] = v
        depths[i] = p2
        reach = math.sqrt(F(2) * math.log(max(opacities[i] / F(MIN_ALPHA), F(1))))
        ex = reach * math.sqrt(xx)
        ey = reach * math.sqrt(yy)
        extents[i, 0] = ex
        extents[i, 1] = ey
        inside = u + ex > 0 and u - ex < size and v + ey > 0 and v - ey < size
        visible[i] = p2 > F(NEAR) and opacities[i] > F(MIN_ALPHA) and inside and det > 0


@njit(parallel=True, cache=True, error_model="numpy")
def _backward(means, quats, scales, V, f, size, conics, g_means2d, g_conics, g_means, g_quats, g_scales, g_tilt):  # type: ignore[no-untyped-def]
    limit = F(1.3) * F(0.5) * size / f
    two = F(2)
    for i in prange(len(means)):
        p0, p1, p2 = camera_point(V, means[i, 0], means[i, 1], means[i, 2])
        z = max(p2, F(NEAR))
        within_x = abs(p0 / z) <= limit
        within_y = abs(p1 / z) <= limit
        slope_x = min(max(p0 / z, -limit), limit)
        slope_y = min(max(p1 / z, -limit), limit)
        x = z * slope_x
        y = z * slope_y
        q, length = _unit(quats, i)
        r = _rotation(q)
        s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
        M, B = _axes(V, f, x, y, z, r, s0, s1, s2)

        # Of the inverse K of C: dC = −K·dK·K, with half of the mixed term's gradient in either corner.
        a, b, c = conics[i, 0], conics[i, 1], conics[i, 2]
        ga, gb, gc = g_conics[i, 0], F(0.5) * g_conics[i, 1], g_conics[i, 2]
        t0, t1, t2, t3 = a * ga + b * gb, a * gb + b * gc, b * ga + c * gb, b * gb + c * gc
        cxx, cxy, cyy = -(t0 * a + t1 * b), -(t0 * b + t1 * c), -(t2 * b + t3 * c)
        # C = B·Bᵀ.
        h0, h1, h2 = two * (cxx * B[0] + cxy * B[3]), two * (cxx * B[1] + cxy * B[4]), two * (cxx * B[2] + cxy * B[5])
        k0, k1, k2 = two * (cxy * B[0] + cyy * B[3]), two * (cxy * B[1] + cyy * B[4]), two * (cxy * B[2] + cyy * B[5])

        # B = M·Q with Q = rotation·scales.
        _shape_gradients(i, M, r, q, length, s0, s1, s2, (h0, h1, h2, k0, k1, k2), g_quats, g_scales)

        # M = J·R, J = (f/z, 0, −f·x/z²; 0, f/z, −f·y/z²).
        m0 = h0 * r[0] * s0 + h1 * r[1] * s1 + h2 * r[2] * s2
        m1 = h0 * r[3] * s0 + h1 * r[4] * s1 + h2 * r[5] * s2
        m2 = h0 * r[6] * s0 + h1 * r[7] * s1 + h2 * r[8] * s2
        n0 = k0 * r[0] * s0 + k1 * r[1] * s1 + k2 * r[2] * s2
        n1 = k0 * r[3] * s0 + k1 * r[4] * s1 + k2 * r[5] * s2
        n2 = k0 * r[6] * s0 + k1 * r[7] * s1 + k2 * r[8] * s2
        j00 = m0 * V[0, 0] + m1 * V[0, 1] + m2 * V[0, 2]
        j02 = m0 * V[2, 0] + m1 * V[2, 1] + m2 * V[2, 2]
        j11 = n0 * V[1, 0] + n1 * V[1, 1] + n2 * V[1, 2]
        j12 = n0 * V[2, 0] + n1 * V[2, 1] + n2 * V[2, 2]
        per_z2 = f / (z * z)
        gx, gy = -per_z2 * j02, -per_z2 * j12
        gz = -per_z2 * (j00 + j11) + two * per_z2 / z * (x * j02 + y * j12)

        # The centre on the screen, and x, y clamped to the cone in which the linearisation is trusted.
        gu, gv = g_means2d[i, 0], g_means2d[i, 1]
        g0, g1 = gu * f / z, gv * f / z
        gz -= per_z2 * (gu * p0 + gv * p1)
        if within_x:
            g0 += gx
        else:
            gz += gx * slope_x
        if within_y:
            g1 += gy
        else:
            gz += gy * slope_y
        g2 = gz if p2 >= F(NEAR) else F(0)
        for k in range(3):
            g_means[i, k] = V[0, k] * g0 + V[1, k] * g1 + V[2, k] * g2
        # Raising the camera turns the scene before it: z grows by what y loses, in the centre and in the axes alike.
        turned = g2 * (p1 - V[1, 3]) - g1 * (p2 - V[2, 3])
        j_x, j_y, j_f = -x * per_z2, -y * per_z2, f / z
        for k in range(3):
            m = m0 if k == 0 else m1 if k == 1 else m2
            n = n0 if k == 0 else n1 if k == 1 else n2
            turned += m * j_x * V[1, k] + n * (j_y * V[1, k] - j_f * V[2, k])
        g_tilt[i] = turned


@njit(error_model="numpy")
def _shape_gradients(i, M, r, q, length, s0, s1, s2, gB, g_quats, g_scales):  # type: ignore[no-untyped-def]
    """Of the scales and the quaternion, from those of B = M·rotation·scales."""
    # Columns of Mᵀ·gB: gradient of Q = rotation·scales.
    a0, a1, a2 = M[0] * gB[0] + M[3] * gB[3], M[1] * gB[0] + M[4] * gB[3], M[2] * gB[0] + M[5] * gB[3]
    b0, b1, b2 = M[0] * gB[1] + M[3] * gB[4], M[1] * gB[1] + M[4] * gB[4], M[2] * gB[1] + M[5] * gB[4]
    c0, c1, c2 = M[0] * gB[2] + M[3] * gB[5], M[1] * gB[2] + M[4] * gB[5], M[2] * gB[2] + M[5] * gB[5]
    g_scales[i, 0] = a0 * r[0] + a1 * r[3] + a2 * r[6]
    g_scales[i, 1] = b0 * r[1] + b1 * r[4] + b2 * r[7]
    g_scales[i, 2] = c0 * r[2] + c1 * r[5] + c2 * r[8]
    r00, r10, r20 = a0 * s0, a1 * s0, a2 * s0
    r01, r11, r21 = b0 * s1, b1 * s1, b2 * s1
    r02, r12, r22 = c0 * s2, c1 * s2, c2 * s2
    w, x, y, z = q
    two, four = F(2), F(4)
    gw = two * (x * (r21 - r12) + y * (r02 - r20) + z * (r10 - r01))
    gx = two * (y * (r01 + r10) + z * (r02 + r20) + w * (r21 - r12)) - four * x * (r11 + r22)
    gy = two * (x * (r01 + r10) + z * (r12 + r21) + w * (r02 - r20)) - four * y * (r00 + r22)
    gz = two * (x * (r02 + r20) + y * (r12 + r21) + w * (r10 - r01)) - four * z * (r00 + r11)
    # Only the direction of the quaternion counts.
    along = w * gw + x * gx + y * gy + z * gz
    g_quats[i, 0] = (gw - w * along) / length
    g_quats[i, 1] = (gx - x * along) / length
    g_quats[i, 2] = (gy - y * along) / length
    g_quats[i, 3] = (gz - z * along) / length
