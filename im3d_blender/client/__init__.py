"""The other side of the wire: the backend's process, its messages, and the queue of jobs. No bpy here.

    environment   how the backend is started: command, environment, ssh
    backend       one backend process: started on demand, read without blocking, ended with all its children
    queue         the jobs in order, surviving backend crashes
    tasks         one command of the backend beside the jobs, e.g. a download
    transfer      files to and from a backend on another machine, over an ssh of their own

Everything is called from one thread and returns within milliseconds; reading and writing pipes happens in daemon
threads of `backend` and `transfer`.
"""

from __future__ import annotations

from ...backend.im3d.shared import file_stream, protocol

__all__ = ["file_stream", "protocol"]
