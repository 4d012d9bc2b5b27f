"""Finished jobs become objects in the file in which they were requested."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bpy

from ..client.backend import Failure
from ..core import finished_jobs
from ..core.placement import read_placement
from ..scene import arrival, importing
from . import open_file
from .preferences import home_folder
from .properties import refresh_jobs

if TYPE_CHECKING:
    from .session import Session

OTHER_FILE = "Started in another file. Import it here?"


def let_arrive(context: bpy.types.Context, session: Session, job_id: str, anywhere: bool = False) -> None:
    """Imports the object of a finished job where it was requested, and lists the job among the finished ones.

    Args:
        anywhere: Also into another file than the one in which it was requested.
    """
    if job_id in session.arriving:
        session.arriving.remove(job_id)
    job = session.find(job_id)
    if job is None:
        return
    refresh_jobs(context)
    placement = read_placement(job.folder)
    if placement is None or not placement.arrive:
        return
    if not (anywhere or placement.is_for(bpy.data.filepath, open_file.document())):
        session.notes[job_id] = OTHER_FILE
        return
    try:
        _, notes = arrival.deliver(context, job.folder, placement, home_folder(context))
        session.notes[job_id] = " ".join(notes)
    except (finished_jobs.JobError, importing.ImportFailedError) as error:
        job.state = "failed"
        job.failure = Failure("import", str(error), "", str(job.folder / "log.txt"))
        session.note(job)  # the row of its table fails too
