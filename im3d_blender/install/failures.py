"""Why an installation failed: what the last words of pip and uv mean, in sentences."""

from __future__ import annotations

from typing import Literal

from ..client.backend import Failure

Code = Literal[
    "answer", "cancelled", "certificate", "defect", "disk", "ensurepip", "hash", "install", "network", "offline",
    "place", "silent", "space",
]  # fmt: skip

# What is wrong, and what to do.
INSTALL_FAILURES: dict[Code, tuple[str, str]] = {
    "answer": ("The new backend does not answer.", "The log says more."),
    "cancelled": ("The installation was stopped.", "Install again: it goes on where it was."),
    "certificate": (
        "This network shows a certificate that this machine does not know.",
        "Networks and virus scanners that look into encrypted traffic do so. Have their root certificate installed in "
        "the operating system, then install again.",
    ),
    "defect": ("The installation failed.", "Install again: it goes on where it was."),
    "disk": ("The disk is full.", "Free some space, then install again: it goes on where it was."),
    "ensurepip": (
        "Blender's Python cannot make an environment: its module ensurepip is missing.",
        "On Debian and Ubuntu the package python3-venv provides it; Blender from blender.org has it.",
    ),
    "hash": ("A download is not what it should be and was thrown away.", "Try again, or on another network."),
    "install": ("A step failed.", "The log says more."),
    "network": ("A download was interrupted.", "Check the network, then install again: it goes on where it was."),
    "offline": ("Online access is switched off in Blender.", "Allow it in the preferences, under System."),
    "place": ("The folder cannot be written.", "Choose another folder."),
    "silent": ("The installer stopped answering.", "Install again: it goes on where it was."),
    "space": ("There is not enough free space.", "Free some space, or choose a folder on another disk."),
}

# Words by which pip, uv and the system are understood, in the order in which they are looked for.
SIGNS: tuple[tuple[Code, tuple[str, ...]], ...] = (
    ("disk", ("no space left", "disk full", "errno 28", "file too large", "os error 28", "not enough space")),
    ("place", ("read-only file system", "permission denied", "access is denied", "os error 30", "os error 13")),
    ("hash", ("hash mismatch", "do not match the hashes", "failed to extract", "crc", "bad zip")),
    ("certificate", ("invalid peer certificate", "unknownissuer", "certificate verify failed",
                     "certificate_verify_failed", "self-signed certificate", "self signed certificate",
                     "no ca certificates were loaded")),
    ("network", ("connect", "dns", "resolve host", "timed out", "network", "error sending request", "failed to fetch",
                 "incompleteread", "error decoding response body", "no matching distribution")),
)  # fmt: skip


class InstallError(Exception):
    """A step failed; `failure` says why."""

    def __init__(self, code: Code, log: str = "", message: str = "") -> None:
        """With another message than that of the code, if there is one."""
        known, hint = INSTALL_FAILURES[code]
        super().__init__(message or known)
        self.failure = Failure(code, message or known, hint, log)


def explained(tail: str, log: str) -> InstallError:
    """The failure behind the last words of a command."""
    text = tail.lower()
    for code, signs in SIGNS:
        if any(sign in text for sign in signs):
            return InstallError(code, log)
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return InstallError("install", log, lines[-1] if lines else "")
