"""IM-3D on the user's own machine: orbit views → Gaussian splats → textured mesh.

Importing this package is cheap: torch and the other heavy libraries are imported by the modules that use them.
"""

import os

# Before numba or torch start their thread pools: numba's default pool and torch's spinning OpenMP threads fight
# for the same cores (21 ms against 12.5 ms for one rasteriser pass on two cores).
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# GNU's OpenMP instead spins for a few microseconds: an iteration is a hundred short parallel loops, and a thread that
# goes to sleep between them costs a third of it (58 against 40 ms).
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"
