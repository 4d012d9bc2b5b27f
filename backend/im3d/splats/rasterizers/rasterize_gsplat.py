"""The CUDA rasteriser: gsplat's kernels behind our interface.

Only calls that gsplat 1.5.3 and its later versions share are used. `packed=False` is faster at our sizes, and the
background is composited by us: packed images with a background fail an assertion in 1.5.3.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil

import torch
from torch import Tensor

from im3d.core.orbit import Cameras
from im3d.errors import Im3dError
from im3d.splats.gaussians import Gaussians
from im3d.splats.rasterizers.project import EPS_2D, NEAR


@functools.cache
def unavailable_reason() -> str:
    """Why gsplat cannot run here, in one sentence; "" when it can.

    gsplat compiles its kernels at first use (minutes; a message says so). That needs a CUDA compiler; a machine without
    one gets a reason here instead of the late and obscure failures of the package.
    """
    if not torch.cuda.is_available():
        return "No CUDA device is visible to torch."
    if importlib.util.find_spec("gsplat") is None:
        return "The package gsplat is not installed."
    if _compiled():
        return ""
    if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        return "gsplat is not compiled, and there is no CUDA compiler (nvcc) to do it."
    if shutil.which("cl" if os.name == "nt" else "c++") is None:
        return "gsplat is not compiled, and there is no C++ compiler to do it."
    return ""


def _compiled() -> bool:
    if importlib.util.find_spec("gsplat.csrc") is not None:
        return True
    from torch.utils.cpp_extension import _get_build_directory

    folder = _get_build_directory("gsplat_cuda", verbose=False)
    return os.path.isdir(folder) and any(name in ("gsplat_cuda.so", "gsplat_cuda.lib") for name in os.listdir(folder))


@functools.cache
def load_kernels() -> None:
    """Loads gsplat's kernels, compiling them if that has not been done.

    Raises:
        Im3dError: They cannot be compiled.
    """
    if not _compiled():
        logging.getLogger(__name__).warning("Compiling gsplat's CUDA kernels: once, for about two minutes.")
        # gsplat's own default of ten compilers at a time can take all the memory of a workstation.
        os.environ.setdefault("MAX_JOBS", str(min(10, max(1, (os.cpu_count() or 2) // 2))))
    try:
        from gsplat.cuda._backend import _C
    except (RuntimeError, ImportError) as error:
        raise Im3dError(
            f"gsplat's CUDA kernels could not be compiled: {str(error).splitlines()[0]}",
            "Use the device cpu, or install the CUDA toolkit and C++ compiler that match torch.",
        ) from error
    if _C is None:
        raise Im3dError("gsplat found no CUDA toolkit.", "Use the device cpu, or install the CUDA toolkit.")


def rasterize(gaussians: Gaussians, cameras: Cameras, colors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Renders one image for each of C cameras.

    Args:
        gaussians: On a CUDA device.
        cameras: C cameras.
        colors: (N, 3) what each splat carries.

    Returns:
        Premultiplied colour (C, S, S, 3), transmittance (C, S, S), screen positions (C, N, 2) that keep their gradient,
        and whether each splat is visible, (C, N).

    Raises:
        Im3dError: The kernels cannot be compiled.
    """
    load_kernels()
    from gsplat import rasterization

    device = gaussians.device
    # Such small copies are taken before the call returns; waiting for them would wait for all that the GPU has to do.
    viewmats = torch.from_numpy(cameras.viewmats).to(device, non_blocking=True)
    K = torch.from_numpy(cameras.intrinsics).to(device, non_blocking=True).expand(len(cameras), 3, 3)
    image, alpha, info = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        colors,
        viewmats,
        K.contiguous(),
        cameras.size,
        cameras.size,
        near_plane=NEAR,
        eps2d=EPS_2D,
        packed=False,
    )
    means2d = info["means2d"]
    if means2d.requires_grad:
        means2d.retain_grad()
    visible = (info["radii"] > 0).reshape(len(cameras), len(gaussians), -1).all(dim=-1)
    return image, 1 - alpha[..., 0], means2d, visible
