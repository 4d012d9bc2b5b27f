"""New draws of the training props, rendered while the network trains on the last one.

A few thousand props are learnt by heart; deformed, lit and placed anew, they last longer. A draw is rendered by other
processes, and takes the place of the last one between two steps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im3d_lab.training.data.helpers import Stop
from im3d_lab.training.data.orbits import OrbitSet, delete_orbits, render_packs
from im3d_lab.training.data.volumes import frames


@dataclass(frozen=True)
class DrawRequest:
    """What `render_packs` is asked for; its arguments."""

    packs: Sequence[Path]
    folder: Path
    size: int
    orbits: int
    workers: int
    devices: int
    limit: int
    draw: int

    def rendered(self, stop: Stop | None = None) -> OrbitSet:
        """The orbits, rendered if they were not before; `stop` ends the rendering."""
        return render_packs(
            self.packs, self.folder, self.size, self.orbits, self.workers, self.devices, self.limit, self.draw, stop
        )


@dataclass(frozen=True)
class Draw:
    """A rendered draw.

    Attributes:
        orbits: Its orbits; the rows are the same props in every draw.
        azimuth, to_prop: Of `frames`.
    """

    orbits: OrbitSet
    azimuth: NDArray[np.float32]
    to_prop: NDArray[np.float32]


class Redrawing:
    """Renders one draw after another in the background, with pauses: rendering takes much of a machine.

    The end of a `with` block ends a rendering too that is under way.

    Args:
        request: The draw that training begins with; the ones that follow count up from it.
        pause_s: Seconds from the use of one draw to the rendering of the next.
    """

    def __init__(self, request: DrawRequest, pause_s: float) -> None:
        self._request, self._pause_s = request, pause_s
        self._thread = ThreadPoolExecutor(1)
        self._coming: Future[Draw] | None = None
        self._due = time.monotonic() + pause_s
        self._stop = Stop()

    def __enter__(self) -> Redrawing:
        return self

    def __exit__(self, *_: object) -> None:
        """Deletes what was rendered in vain."""
        self._stop()
        self._thread.shutdown(wait=True)
        if self._coming is not None and self._coming.exception() is None:
            delete_orbits(self._coming.result().orbits)

    @property
    def ready(self) -> bool:
        """Whether `take` needs not wait. Asking begins with a draw that is due."""
        if self._coming is None and time.monotonic() >= self._due:
            self._begin()
        return self._coming is not None and self._coming.done()

    def take(self) -> Draw:
        """The next draw. Its pictures stay on disk until `discard`."""
        return (self._coming or self._begin()).result()

    def discard(self, draw: Draw) -> None:
        """Deletes the pictures of a draw that is no longer read from disk."""
        delete_orbits(draw.orbits)
        self._coming = None
        self._due = time.monotonic() + self._pause_s

    def _begin(self) -> Future[Draw]:
        self._request = dataclasses.replace(self._request, draw=self._request.draw + 1)
        self._coming = self._thread.submit(_rendered, self._request, self._stop)
        return self._coming


def _rendered(request: DrawRequest, stop: Stop) -> Draw:
    orbits = request.rendered(stop)
    return Draw(orbits, *frames(orbits, request.packs, request.workers, stop))
