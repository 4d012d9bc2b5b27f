"""The backend as the add-on runs it: its process, its messages, its files, and the queue of jobs. No bpy here.

    environment   how the backend is started: command, environment, ssh
    backend       one backend process: started on demand, read without blocking, ended with all its children
    queue         the jobs in order, surviving backend crashes
    tasks         one command of the backend beside the jobs, e.g. a download
    transfer      files to and from a backend on another machine, over an ssh of their own
    session_lock  which Blender takes care of which unfinished jobs
    log           what the backend prints beside its messages

Everything is called from one thread. Only ending a process waits, for at most its grace period; daemon threads read and
write the pipes.
"""

from __future__ import annotations

from ...backend.im3d.shared import file_stream, protocol

__all__ = ["file_stream", "protocol"]
