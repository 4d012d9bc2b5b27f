"""Gaussian splats: rendering, fitting, saving. Knows nothing of meshes, jobs or Blender."""
