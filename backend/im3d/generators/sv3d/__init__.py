"""Stable Video 3D. `generator` is its public face."""
