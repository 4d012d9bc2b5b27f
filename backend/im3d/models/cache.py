"""Networks that stay in memory from one job to the next, in a process that runs many.

    with MODELS.keeping():
        networks = MODELS.get("sv3d", [path], options, read)  # read at the first use, and when its files have changed
        ...
        MODELS.rest()                                         # a stage or a job has done with them

Between uses the weights rest in the computer's memory. The GPU's belongs to the fit, the mesh and Blender, and bringing
weights to it takes a fraction of what reading them does. Where the computer's memory gets short, models are let go.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from im3d.core.memory import give_back_gpu_memory, give_back_memory

if TYPE_CHECKING:
    from torch import Tensor

Model = TypeVar("Model")
# Share of the computer's memory that stays available to other programs: what it takes to keep a model is not worth
# pushing them out to the disk.
RESERVE = 0.25


@dataclass(frozen=True)
class _Kept:
    """A model with the weights that it was read with: what is on a device is a copy of them.

    Attributes:
        weights: Of every parameter and buffer the table of its module that it stands in, its name there, the tensor,
            and what the tensor held. A module that is moved gives its parameters other contents, and its buffers are
            replaced.
    """

    key: Hashable
    model: Any
    weights: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]


class ModelCache:
    """The models of this process, at most one of each kind; for one thread at a time."""

    def __init__(self) -> None:
        self._keeping = False
        self._kept: dict[str, _Kept] = {}  # the oldest first

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Models are kept while the block runs, and let go at its end. In a process of one job that would only cost."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
            self._kept.clear()

    def get(self, kind: str, files: Sequence[Path], options: Hashable, read: Callable[[], Model]) -> Model:
        """The model that is kept, or else the one that `read` returns, which then is kept; see `keeping`.

        Args:
            kind: What it is for; reading another of the same kind lets the first go.
            files: Its files or their folders. When one of them has changed, it is read anew.
            options: Whatever else decides what `read` returns.
            read: Reads it into the computer's memory. It runs outside of torch's inference mode, in which weights that
                were read could never be moved outside of it.

        Returns:
            A module, or an object with modules as attributes. Its weights may be on any device: whoever uses it moves
            it (`module.to(device)`).
        """
        import torch

        if not self._keeping:
            with torch.inference_mode(False):
                return read()
        found = sorted(path for given in files for path in (given.rglob("*") if given.is_dir() else [given]))
        states = [(path, path.stat()) for path in found if path.is_file()]
        key = (options, tuple((str(path), state.st_mtime_ns, state.st_size) for path, state in states))
        kept = self._kept.pop(kind, None)
        if kept is None or kept.key != key:
            kept = None
            self._make_room(sum(state.st_size for _, state in states))
            with torch.inference_mode(False):
                model = read()
                kept = _Kept(key, model, [(*place, place[2].data) for place in _weights(model)])
        self._kept[kind] = kept
        return cast("Model", kept.model)

    def rest(self) -> None:
        """Frees the devices: kept weights are in the computer's memory again, where that has room for them.

        What torch keeps of the GPU for later is handed back, also where no models are kept.
        """
        for kept in self._kept.values():
            for table, name, tensor, content in kept.weights:
                tensor.data = content
                table[name] = tensor
        give_back_gpu_memory()
        self._make_room(0)

    def _make_room(self, needed: int) -> None:
        """Lets go of the oldest models until so many bytes more leave the reserve alone."""
        import psutil

        while self._kept:
            memory = psutil.virtual_memory()
            if memory.available - needed >= RESERVE * memory.total:
                return
            del self._kept[next(iter(self._kept))]
            gc.collect()
            give_back_memory()


def _weights(model: object) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Parameters and buffers of a module, or of the modules that are attributes of a model, and where they stand."""
    from torch import nn

    parts = [model] if isinstance(model, nn.Module) else vars(model).values()
    for module in (module for part in parts if isinstance(part, nn.Module) for module in part.modules()):
        for table in (module._parameters, module._buffers):
            yield from ((table, name, tensor) for name, tensor in table.items() if tensor is not None)


MODELS = ModelCache()
