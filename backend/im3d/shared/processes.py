"""Child processes that end with the one that started them, however that one ends.

What was started with `bound` is killed with its parent: by the kernel on Linux, by a job object on Windows. Where there
is neither (macOS), and for what a child starts itself, a process with a group of its own (`OWN_GROUP`) is killed with
its whole group by `kill_family`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# Asks the kernel to kill this process with its parent, then becomes the command. A parent that died in between is
# noticed by the process having another one. (Between fork and exec of a process with threads no Python may run.)
_BIND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""
# What Blender, or the shell that started it, sets for one Python, and another one would take for its own.
_OF_PYTHON = frozenset(
    {
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "__PYVENV_LAUNCHER__",
    }
)
# For `subprocess.Popen`: the child leads a process group.
OWN_GROUP: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}


def bound(command: Sequence[str]) -> list[str]:
    """The command in a form for `subprocess` whose process is killed when this one ends.

    On Linux "this one" is the thread that starts it: start long commands from the main thread.

    Raises:
        FileNotFoundError: There is no such program.
    """
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    if sys.platform == "win32":
        _bind_all_children()
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BIND, str(os.getpid()), program, *command[1:]]


def environment_without_python() -> dict[str, str]:
    """This process's environment variables, for a child that has a Python of its own."""
    return {name: value for name, value in os.environ.items() if name not in _OF_PYTHON}


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that was started with `OWN_GROUP`, and what it started; also when it has ended itself."""
    if sys.platform != "win32":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def kill_own_family() -> None:
    """Ends this process at once, with all that it started where it leads a group of its own."""
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@functools.cache
def _bind_all_children() -> None:
    """Windows: puts this process into a job object that is closed, and so ended, with it; children are born into it."""
    if sys.platform != "win32":
        return
    from ctypes.wintypes import BOOL, DWORD, HANDLE

    class BasicLimits(ctypes.Structure):
        _fields_ = [
            ("per_process_user_time", ctypes.c_int64),
            ("per_job_user_time", ctypes.c_int64),
            ("flags", DWORD),
            ("least_working_set", ctypes.c_size_t),
            ("largest_working_set", ctypes.c_size_t),
            ("active_processes", DWORD),
            ("affinity", ctypes.c_size_t),
            ("priority_class", DWORD),
            ("scheduling_class", DWORD),
        ]

    class ExtendedLimits(ctypes.Structure):
        _fields_ = [("basic", BasicLimits), ("counters", ctypes.c_uint64 * 6), ("memory", ctypes.c_size_t * 4)]

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = HANDLE
    kernel.CreateJobObjectW.argtypes = (ctypes.c_void_p, ctypes.c_wchar_p)
    kernel.SetInformationJobObject.restype = BOOL
    kernel.SetInformationJobObject.argtypes = (HANDLE, ctypes.c_int, ctypes.c_void_p, DWORD)
    kernel.AssignProcessToJobObject.restype = BOOL
    kernel.AssignProcessToJobObject.argtypes = (HANDLE, HANDLE)
    kernel.GetCurrentProcess.restype = HANDLE
    job = kernel.CreateJobObjectW(None, None)  # its handle is never closed but by the end of this process
    limits = ExtendedLimits()
    limits.basic.flags = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    kernel.SetInformationJobObject(job, 9, ctypes.byref(limits), ctypes.sizeof(limits))
    kernel.AssignProcessToJobObject(job, kernel.GetCurrentProcess())
