"""Cameras, pictures, files, progress and the machine: what every other package builds on."""
