"""Child processes: started, listened to, and ended with everything that they have started.

A `Child` is killed with its whole group. A command in the form of `bound` is also killed with its parent, however that
one ends: by the kernel on Linux, by a job object on Windows. On macOS, which has neither, the group must do.
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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

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
# A killed process that is not gone by then is stuck in the kernel, e.g. on a dead network drive, and is left to it.
STUCK_S = 5.0


class Child(subprocess.Popen[bytes]):
    """A process in a session of its own: Ctrl-C in our terminal does not reach it, and it is killed with its children.

    Its stdin is empty and its stdout and stderr are pipes, unless `streams` names others. On Windows it has no console.

    Args:
        command: Program and arguments.
        environment: All its environment variables; None: those of this process.
        clock: Seconds, monotonic.
        streams: `stdin`, `stdout` and `stderr` of `subprocess.Popen`.

    Raises:
        OSError: It cannot be started.

    Attributes:
        output_at: When something last came through a pump, or it was started, by `clock`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **streams: Any,
    ) -> None:
        self.output_at = clock()
        self._clock = clock
        self._pumps: list[threading.Thread] = []
        super().__init__(
            list(command),
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            start_new_session=sys.platform != "win32",
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )

    def pump(self, stream: IO[bytes] | None, take: Callable[[bytes], None]) -> None:
        """Passes on what the process writes into one of its pipes, from a daemon thread, until the end of the pipe."""
        assert stream is not None

        def run() -> None:
            with stream:
                while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
                    self.output_at = self._clock()
                    take(data)

        self._pumps.append(threading.Thread(target=run, daemon=True))
        self._pumps[-1].start()

    @property
    def is_over(self) -> bool:
        """Whether it has ended and all that it wrote has gone through the pumps."""
        return self.poll() is not None and not any(pump.is_alive() for pump in self._pumps)

    def drain(self) -> None:
        """After the end: waits for the rest in its pipes, but not long for a pipe that another process holds open."""
        for pump in self._pumps:
            pump.join(STUCK_S)

    def end(self, grace_s: float = 0.0) -> int:
        """Waits up to `grace_s` for its end, then kills it with all that it started; returns its exit status.

        Closing its stdin, or whatever else asks it to end, is up to the caller.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=grace_s)
        if sys.platform == "win32":
            if self.poll() is None:
                tree = ["taskkill", "/T", "/F", "/PID", str(self.pid)]
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(tree, capture_output=True, timeout=10, creationflags=subprocess.CREATE_NO_WINDOW)
        else:
            # Also after its own end: processes that it started may live on.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=STUCK_S)
        return -9 if self.returncode is None else self.returncode


def query_nvidia(fields: str, timeout_s: float) -> str:
    """What the graphics driver answers, a line for each GPU; "" where there is none, or it does not answer.

    Args:
        fields: As `nvidia-smi --query-gpu` takes them, separated by commas.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        child = Child([tool, f"--query-gpu={fields}", "--format=csv,noheader"], stderr=subprocess.DEVNULL)
    except OSError:
        return ""
    try:
        output = child.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        child.kill()  # without waiting for its end: with a broken driver that never comes
        return ""
    return output.decode("utf-8", "replace").strip() if child.returncode == 0 else ""


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
