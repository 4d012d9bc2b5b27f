"""Depth maps fused to a distance field. `field` is the public face."""
