"""Programs that a job starts end with the process of the job, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from im3d.shared.processes import bound

WAIT_S = 60.0

# Each starts a program as a job does; the program is a stand-in that notes its process and stays.
STARTERS = {
    "xatlas": """
import numpy as np
from im3d.mesh.texture import unwrap
from im3d.mesh.surface import TriangleMesh
unwrap.WORKER = stand_in
unwrap._xatlas(TriangleMesh(np.zeros((3, 3), np.float32), np.zeros((1, 3), np.int32)), 64)
""",
    "Blender": """
from im3d import blender
blender._run_script(blender.Blender((sys.executable, str(stand_in)), (), "stand-in"), "x.py", {}, Path("x"), 600.0)
""",
}


def gone(pid: int) -> bool:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a job object or the server ends the family")
@pytest.mark.parametrize("program", STARTERS)
def test_a_killed_job_leaves_no_program(program: str, tmp_path: Path) -> None:
    stand_in, note = tmp_path / "stand_in.py", tmp_path / "note"
    os.mkfifo(note)
    stand_in.write_text(f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    code = f"import sys\nfrom pathlib import Path\nstand_in = Path({str(stand_in)!r})\n{STARTERS[program]}"
    with subprocess.Popen([sys.executable, "-c", code]) as job:
        pid = int(note.read_text())
        assert psutil.Process(pid).ppid() == job.pid
        job.send_signal(signal.SIGKILL)
    assert gone(pid)


def test_a_bound_program_is_itself(tmp_path: Path) -> None:
    command = bound([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "-c", ""])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (7, "['a b', '-c', '']")


def test_a_program_that_is_missing_or_none_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bound(["nowhere-to-be-found"])
    (tmp_path / "script").write_bytes(b"\x7fELF no program")
    (tmp_path / "script").chmod(0o755)
    done = subprocess.run(bound([str(tmp_path / "script")]), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Exec format error" in done.stderr
