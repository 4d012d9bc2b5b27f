"""Rasterizers of Gaussian splats: numba for processors, gsplat and Warp for GPUs. `im3d.splats.render` chooses."""
