"""The rendered orbits of one or more packs, kept on disk as one array that training maps into memory."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im3d.core.orbit import DEFAULT_VIEWS
from im3d.errors import InputError
from im3d_lab.packs import Pack, Split
from im3d_lab.training.data.helpers import Stop, helpers
from im3d_lab.training.data.opengl import OrbitRenderer, recipe_of

HELD_OUT_ORBITS = 2


@dataclass(frozen=True)
class OrbitSet:
    """Orbits and where they come from.

    Attributes:
        views: (N, 16, S, S, 4) uint8, premultiplied RGBA; mapped from disk.
        elevation_deg: (N,) float32.
        split: (N,) "train", "validation" or "test".
        prop: (N,) "pack name/prop id".
        draw: Which draw of the training props' recipes it is.
    """

    views: NDArray[np.uint8]
    elevation_deg: NDArray[np.float32]
    split: NDArray[np.str_]
    prop: NDArray[np.str_]
    draw: int = 0

    @property
    def size(self) -> int:
        """Side of the views in pixels."""
        return int(self.views.shape[2])

    def rows(self, split: Split) -> NDArray[np.int64]:
        """The orbits of one split."""
        return np.flatnonzero(self.split == split)

    def rows_by_pack(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """The orbits of one split, by the names of the packs that have any."""
        rows = self.rows(split)
        pack = np.array([name.split("/", 1)[0] for name in self.prop[rows].tolist()])
        return {str(name): rows[pack == name] for name in np.unique(pack)}


def balanced_shares(orbits: OrbitSet, packs: Sequence[Path]) -> NDArray[np.float32]:
    """How often each orbit should be sampled, relative to others of its pack, (N,).

    Thirty variants of a wall are sampled as often, together, as one chair. Objects of a group that validates or tests
    in another pack are never sampled.

    Args:
        orbits: Rendered from the packs.
        packs: Their files.

    Raises:
        InputError: A pack cannot be read.
    """
    opened = [Pack.open(path) for path in packs]
    held_out = {g for pack in opened for g, s in zip(pack.groups, pack.splits, strict=True) if s != "train"}
    share = {}
    for pack in opened:
        members = Counter(g for g, s in zip(pack.groups, pack.splits, strict=True) if s == "train")
        for prop, group in zip(pack.ids, pack.groups, strict=True):
            # A group is never divided within its pack, so that one which is held out here has no members.
            held = group in held_out and group in members
            share[f"{pack.path.name}/{prop}"] = 0.0 if held else 1 / max(1, members[group])
    return np.array([share[name] for name in orbits.prop.tolist()], np.float32)


@dataclass(frozen=True)
class _Job:
    """The orbits of one prop in one draw: rows first … first + count − 1 of the array."""

    row: int
    split: Split
    first: int
    count: int
    draw: int


def render_packs(
    packs: Sequence[Path],
    folder: Path,
    size: int,
    orbits: int,
    workers: int,
    devices: int = 1,
    limit: int = 0,
    draw: int = 0,
    stop: Stop | None = None,
) -> OrbitSet:
    """Renders every prop's orbits, or opens them when the same request was rendered before.

    Args:
        packs: Pack files.
        folder: Where the array is kept; 16·size²·4 bytes an orbit.
        size: Side of the views in pixels.
        orbits: Orbits per training prop, on average: packs with few props get more of each, so that no pack drowns.
            0: those of validation and test alone.
        workers: Rendering processes.
        devices: EGL devices to spread them over.
        limit: Use only that many props of each pack; 0 uses all.
        draw: Another number gives other orbits of the training props.
        stop: Ends the rendering processes, and with them the rendering.

    Raises:
        InputError: A pack cannot be read.
    """
    opened = [Pack.open(path) for path in packs]
    counts = [min(len(pack), limit) if limit else len(pack) for pack in opened]
    request: list[object] = [[p.name, os.path.getsize(p), n] for p, n in zip(packs, counts, strict=True)]
    request += [[size, orbits, draw], *[pack.splits for pack in opened]]
    digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:12]
    data, index = folder / f"orbits-{digest}.u8", folder / f"orbits-{digest}.npz"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            _render_all(opened, counts, orbits, size, workers, devices, draw, data, index, stop)
        except BaseException:
            data.unlink(missing_ok=True)  # gigabytes that nobody would look for
            raise
        print(f"rendered {data.stat().st_size / 1e9:.1f} GB of orbits in {time.monotonic() - start:.0f} s", flush=True)
    return open_orbits(index)


def open_orbits(index: Path) -> OrbitSet:
    """Opens what `render_packs` wrote.

    Raises:
        InputError: The file is missing or not an index of orbits.
    """
    try:
        with np.load(index, allow_pickle=False) as table:
            elevation, split, prop = (table[k] for k in ("elevation_deg", "split", "prop"))
            size, draw = int(table["size"]), int(table["draw"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index} is not an index of rendered orbits.", "Render the packs again.") from error
    shape = (len(elevation), DEFAULT_VIEWS, size, size, 4)
    return OrbitSet(np.memmap(index.with_suffix(".u8"), np.uint8, "r", shape=shape), elevation, split, prop, draw)


def delete_orbits(orbits: OrbitSet) -> None:
    """Deletes the files of rendered orbits; where they are mapped they can be read until that ends (not on Windows)."""
    filename = getattr(orbits.views, "filename", None)
    if filename is not None:
        for path in (Path(filename), Path(filename).with_suffix(".npz")):
            path.unlink(missing_ok=True)


def orbits_per_prop(props: Sequence[int], orbits: int) -> list[int]:
    """How many orbits each training prop of each pack gets.

    Half of the budget is dealt evenly to props, half evenly to packs.

    Args:
        props: Training props of each pack.
        orbits: Orbits per prop on average over all packs.
    """
    if not orbits:
        return [0] * len(props)
    budget = orbits * sum(props)
    return [max(1, round(orbits / 2 + budget / 2 / len(props) / n)) if n else 0 for n in props]


def _render_all(
    packs: Sequence[Pack],
    counts: Sequence[int],
    orbits: int,
    size: int,
    workers: int,
    devices: int,
    draw: int,
    data: Path,
    index: Path,
    stop: Stop | None,
) -> None:
    train = [pack.splits[:n].count("train") for pack, n in zip(packs, counts, strict=True)]
    per_prop = orbits_per_prop(train, orbits)
    chunks: list[tuple[Path, list[_Job]]] = []
    elevation: list[float] = []
    split: list[str] = []
    prop: list[str] = []
    for pack, n, k in zip(packs, counts, per_prop, strict=True):
        jobs = []
        for row, (name, s) in enumerate(zip(pack.ids[:n], pack.splits[:n], strict=True)):
            job = _Job(row, s, len(elevation), k if s == "train" else HELD_OUT_ORBITS, draw)
            elevation += [recipe_of(name, s, i, draw).elevation_deg for i in range(job.count)]
            split += [s] * job.count
            prop += [f"{pack.path.name}/{name}"] * job.count
            if job.count:
                jobs.append(job)
        # Short chunks even out the workers' loads.
        chunks += [(pack.path, jobs[i : i + 16]) for i in range(0, len(jobs), 16)]
    with open(data, "wb") as file:
        file.truncate(len(elevation) * DEFAULT_VIEWS * size * size * 4)
    taken = multiprocessing.get_context("spawn").Value("i", 0)
    with helpers(workers, _start_worker, (data, size, devices, taken), stop) as pool:
        for _ in pool.map(_render_chunk, chunks):
            pass
    partial = index.with_suffix(".part.npz")
    np.savez(
        partial,
        elevation_deg=np.array(elevation, np.float32),
        split=np.array(split),
        prop=np.array(prop),
        size=size,
        draw=draw,
    )
    os.replace(partial, index)


# One renderer and the packs it has opened, in each rendering process.
_renderer: OrbitRenderer
_data: Path
_packs: dict[Path, Pack] = {}


def _start_worker(data: Path, size: int, devices: int, taken: object) -> None:
    global _renderer, _data
    with taken.get_lock():  # type: ignore[attr-defined]
        number = taken.value  # type: ignore[attr-defined]
        taken.value += 1  # type: ignore[attr-defined]
    _data = data
    _renderer = OrbitRenderer(size, number % devices)
    if number == 0:
        print("rendering on", _renderer.device_name, flush=True)


def _render_chunk(chunk: tuple[Path, list[_Job]]) -> None:
    path, jobs = chunk
    pack = _packs.setdefault(path, Pack.open(path)) if path not in _packs else _packs[path]
    size = _renderer.size
    bytes_per_orbit = DEFAULT_VIEWS * size * size * 4
    with open(_data, "r+b") as file:
        for job in jobs:
            prop = pack[job.row]
            views = _renderer.render(prop, [recipe_of(prop.id, job.split, i, job.draw) for i in range(job.count)])
            file.seek(job.first * bytes_per_orbit)
            file.write(views.tobytes())
