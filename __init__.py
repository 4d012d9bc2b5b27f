"""Blender's entry when the repository is installed as an extension; everything is in `im3d_blender`."""

from .im3d_blender import register, unregister

__all__ = ["register", "unregister"]
