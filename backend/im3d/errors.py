"""The errors a user can meet: one sentence of what is wrong, one of what to do, and the exit status of each kind.

The sentences are the same on the command line and on the panel, so they name neither options nor commands. What one
click or one command can do about an error is its remedy; each side words that in its own way.
"""

from __future__ import annotations


class Im3dError(Exception):
    """A failure that is explained to the user; everything else that is raised is a defect of ours (exit status 1).

    Args:
        message: What is wrong, one sentence.
        hint: What to do about it, one sentence.
        remedy: What helps, as a verb and its object: "download isnet" gets a model (again, if it is damaged; several
            are parted by spaces), "licence sv3d_p" shows its licence, "token sv3d_p" asks for the user's access token,
            "draft" is the cheaper preset, "resume" continues the job. "": nothing that can be done for the user.
    """

    code = "internal"
    exit_status = 1

    def __init__(self, message: str, hint: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def to_json(self) -> dict[str, str]:
        """The error as messages, state.json and `--json` carry it: {code, message, hint, remedy}."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "remedy": self.remedy}


class InputError(Im3dError):
    """The input cannot be used: missing, unreadable, contradictory or out of range."""

    code = "bad_input"
    exit_status = 2


class ModelError(Im3dError):
    """A model is not installed, or its licence has not been accepted."""

    code = "model_missing"
    exit_status = 3


class OutOfMemoryError(Im3dError):
    """The device's memory does not hold the job."""

    code = "out_of_memory"
    exit_status = 4


class WorkerDiedError(Im3dError):
    """The process that worked on the job is gone; the job can be resumed from its last finished step."""

    code = "worker_died"


class DiskError(Im3dError):
    """The disk is full or failed while results were written."""

    code = "disk"
    exit_status = 1


class CancelledError(Im3dError):
    """The user stopped the job; what is finished stays on disk and can be resumed."""

    code = "cancelled"
    exit_status = 130
