"""Messages over pipes, for both ends of a process: stray output kept out of them, and a thread that reads."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import IO

from . import protocol
from .protocol import Message, ProtocolError


def own_stdout() -> IO[bytes]:
    """The real stdout: whatever else this process prints goes to stderr from now on.

    Call before anything is imported that may print.
    """
    sys.stdout.flush()
    file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return file


class Outgoing:
    """The real stdout (see `own_stdout`), for messages alone. They may be sent from any thread."""

    def __init__(self) -> None:
        self._file = own_stdout()
        self._lock = threading.Lock()

    def __call__(self, message: Message) -> None:
        """Sends a message; when nobody listens any more it is dropped, and the end of stdin ends the process."""
        line = protocol.encode(message)
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
        except (OSError, ValueError):
            pass


def incoming() -> IO[bytes]:
    """Stdin for `read_messages`, as a file of its own.

    The interpreter closes `sys.stdin` when it ends, and aborts when a thread still waits in it.
    """
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


def read_messages(
    stream: IO[bytes], take: Callable[[Message], None], refuse: Callable[[ProtocolError], None], end: Callable[[], None]
) -> threading.Thread:
    """Starts a daemon thread that reads messages until the end of the stream, whatever its lines and `take` do.

    Args:
        stream: Of lines.
        take: Called with each message, on the thread.
        refuse: Called with the reason why a line is no message, or could not be taken.
        end: Called once, at the end of the stream, in any case.
    """

    def read() -> None:
        try:
            while line := stream.readline(protocol.MAX_LINE + 1):
                try:
                    take(protocol.decode(line))
                except Exception as error:
                    known = error if isinstance(error, ProtocolError) else None
                    with contextlib.suppress(Exception):
                        refuse(known or ProtocolError(f"{type(error).__name__}: {error}"))
                # What is left of a line that is too long is not the next one.
                while not line.endswith(b"\n") and line:
                    line = stream.readline(protocol.MAX_LINE)
        except (OSError, ValueError):
            pass  # the pipe broke: the same as its end
        finally:
            end()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
