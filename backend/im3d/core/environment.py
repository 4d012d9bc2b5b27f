"""What this process tells numba and OpenMP, by environment variables that they read when they are imported.

Standard library only. What the user has set himself stays.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from im3d.shared.paths import cache_folder


def prepare_process() -> None:
    """Sets how threads wait for each other, and where numba keeps what it compiled; before numba and torch come."""
    # numba's own pool of threads and torch's spinning OpenMP threads fight for the same cores (21 ms against 12.5 ms
    # for one rasteriser pass on two cores): OpenMP for both, where there is one; numba's wheels for macOS bring none.
    os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb workqueue")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # GNU's OpenMP instead spins for a few microseconds: an iteration is a hundred short parallel loops, and a thread
    # that goes to sleep between them costs a third of it (58 against 40 ms).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # numba writes beside the sources by default, and raises where it can write nowhere.
    if not _is_writable(Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).with_name("__pycache__"))):
        own = cache_folder() / "numba"
        os.environ["NUMBA_CACHE_DIR"] = str(own if _is_writable(own) else _temporary_folder())


def _temporary_folder() -> Path:
    """The same one for every process of this user, so that one compiles for all.

    numba loads compiled code from there: where somebody else can write it, this process gets one for itself.
    """
    folder = Path(tempfile.gettempdir()) / f"im3d-{getpass.getuser() if sys.platform == 'win32' else os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        if sys.platform == "win32" or (facts.st_uid == os.getuid() and stat.S_IMODE(facts.st_mode) == 0o700):
            return folder
    except OSError:
        pass  # a file of that name
    folder = Path(tempfile.mkdtemp(prefix="im3d-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether a file can be written into the folder, which is made if it is missing: tested as numba itself does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
