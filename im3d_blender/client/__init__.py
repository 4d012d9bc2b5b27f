"""The other side of the wire: the backend's process, its messages, and the queue of jobs. No bpy here.

    environment   how the backend is started: command, environment, ssh
    backend       one backend process: started on demand, heard without blocking, ended without a trace
    queue         the jobs that were asked for, in order, over all accidents of the backend
    transfer      files to and from a backend on another machine, over an ssh of their own

Everything is called from one thread and returns within milliseconds; reading and writing pipes happens in daemon
threads of `backend` and `transfer`.
"""

from __future__ import annotations

from ...backend.im3d.shared import file_stream, protocol

__all__ = ["file_stream", "protocol"]
