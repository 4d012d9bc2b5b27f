"""IM-3D on the user's own machine: orbit views → Gaussian splats → textured mesh.

Importing this package is cheap: torch and the other heavy libraries are imported by the modules that use them.
"""

__version__ = "0.1.0"

if __name__ == "im3d":
    # Blender imports the add-on's copy, for the messages, by another name: nothing may be set in its process.
    from im3d.core.environment import prepare_process

    prepare_process()
