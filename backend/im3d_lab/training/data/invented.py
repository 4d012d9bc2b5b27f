"""A pack of props that nobody made: training props bent out of shape, and several of them put together.

A few thousand props are learnt by heart, however they are turned, scaled and lit (docs/lab/training-log.md): what their
backs look like is recalled rather than concluded. Bent by a lattice and stood on, beside or within each other they are
shapes that a network has not seen, with the textures and the surfaces of real ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im3d_lab.packs import INT16_SCALE, Pack, Part
from im3d_lab.training.data.helpers import helpers

FloatArray = NDArray[np.float64]

# How often an invented prop is made of one, two or three others.
PIECES = (0.45, 0.4, 0.15)
# Points of the lattice along each axis, and the largest standard deviation of their moves, in sides of the prop's box.
LATTICE, BEND = 4, 0.18
# How often a lattice moves both sides alike, as most props are made.
SYMMETRIC = 0.6
# Props of more triangles are left out: they cost as much as ten others.
MAX_FACES = 30_000
# All of one group, so that they stay together; its hash puts them in the training split.
GROUP = "invented"
_CHUNK = 32


@dataclass(frozen=True)
class _Piece:
    """Parts of a prop and their vertices, moved."""

    parts: tuple[Part, ...]
    vertices: list[FloatArray]

    def box(self) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest corner."""
        everything = np.concatenate(self.vertices)
        return everything.min(axis=0), everything.max(axis=0)

    def moved(self, scale: float, by: FloatArray) -> _Piece:
        return _Piece(self.parts, [v * scale + by for v in self.vertices])


def invented_pack(packs: Sequence[Path], folder: Path, count: int, seed: int, workers: int = 1) -> Path:
    """Makes the pack, or finds it if the same one was made before.

    Args:
        packs: Whose training props it is made of; each is sampled equally often.
        folder: Where the pack is kept, unpacked; a few hundred kilobytes a prop.
        count: Props.
        seed: Another number gives other props.
        workers: Processes.

    Raises:
        InputError: A pack cannot be read.
    """
    request = [[p.name, os.path.getsize(p)] for p in packs] + [[count, seed, *PIECES, LATTICE, BEND, SYMMETRIC]]
    digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()[:12]
    path = folder / f"invented-{digest}.npz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [(packs, seed, range(i, min(count, i + _CHUNK))) for i in range(0, count, _CHUNK)]
    index: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    with helpers(workers) as pool:
        for entries, found in pool.map(_invented, chunks) if workers > 1 else map(_invented, chunks):
            index += entries
            arrays |= found
    arrays["index_json"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, **arrays)
    os.replace(path.with_suffix(".part"), path)
    return path


def _invented(
    chunk: tuple[Sequence[Path], int, range],
) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Index entries and arrays of some props, named by their numbers."""
    paths, seed, numbers = chunk
    packs = [Pack.open(path) for path in paths]
    ids = [pack.ids_of("train") for pack in packs]
    entries: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        piece = invented(packs, ids, rng)
        parts = []
        for j, (part, vertices) in enumerate(zip(piece.parts, _fitted(piece.vertices), strict=True)):
            prefix = f"{number}.{j}."
            arrays[prefix + "vertices"] = (vertices / INT16_SCALE).round().astype(np.int16)
            arrays[prefix + "faces"] = part.faces
            if part.uv is not None:
                arrays[prefix + "uv"] = part.uv.astype(np.float16)
            if part.texture is not None:
                arrays[prefix + "texture_webp"] = np.frombuffer(part.texture, np.uint8)
            entry = {"color": part.color, "textured": part.texture is not None}
            parts.append({**entry, "alpha": part.alpha, "opacity": part.opacity})
        name = f"{GROUP}-{number}"
        entries.append({"id": name, "name": name, "category": GROUP, "licence": "", "group": GROUP, "parts": parts})
    return entries, arrays


def invented(packs: Sequence[Pack], ids: Sequence[Sequence[str]], rng: np.random.Generator) -> _Piece:
    """One prop, Y up, of any size and place.

    Args:
        packs: Packs.
        ids: Of each, the props to sample from.
        rng: Of everything random.
    """
    whole = _drawn(packs, ids, rng)
    for _ in range(int(rng.choice(len(PIECES), p=PIECES))):
        whole = _joined(whole, _drawn(packs, ids, rng), rng)
    return whole


def _drawn(packs: Sequence[Pack], ids: Sequence[Sequence[str]], rng: np.random.Generator) -> _Piece:
    """A training prop, bent and, at times, turned."""
    while True:
        which = int(rng.integers(len(packs)))
        prop = packs[which][str(rng.choice(ids[which]))]
        if sum(len(part.faces) for part in prop.parts) <= MAX_FACES:
            break
    vertices = [part.vertices.astype(np.float64) for part in prop.parts]
    if rng.random() < 0.5:
        angle = np.deg2rad(rng.choice([90, 180, 270, rng.uniform(0, 360)]))
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        vertices = [v @ turn.T for v in vertices]
    return _Piece(prop.parts, bent(vertices, rng))


def bent(vertices: list[FloatArray], rng: np.random.Generator) -> list[FloatArray]:
    """Vertices moved with a lattice about them (free-form deformation, Sederberg & Parry 1986), axes scaled before.

    Args:
        vertices: (V, 3) arrays of one object.
        rng: Of the lattice's moves.
    """
    everything = np.concatenate(vertices)
    low, high = everything.min(axis=0), everything.max(axis=0)
    side = np.maximum(high - low, 1e-3)
    moves = rng.normal(0, rng.uniform(0, BEND), (LATTICE, LATTICE, LATTICE, 3))
    if rng.random() < SYMMETRIC:
        mirrored = moves[::-1] * np.array([-1, 1, 1])
        moves = (moves + mirrored) / np.sqrt(2)
    stretch = np.exp(rng.normal(0, 0.2, 3))
    result = []
    for v in vertices:
        weights = [_bernstein((v[:, axis] - low[axis]) / side[axis]) for axis in range(3)]
        shift = np.einsum("vi,vj,vk,ijkc->vc", *weights, moves, optimize=True)
        result.append((v + shift * side) * stretch)
    return result


def _bernstein(t: FloatArray) -> FloatArray:
    """(V, LATTICE) Bernstein polynomials at t in [0, 1]."""
    n = LATTICE - 1
    binomial = [1.0]
    for i in range(n):
        binomial.append(binomial[-1] * (n - i) / (i + 1))
    return np.stack([binomial[i] * t**i * (1 - t) ** (n - i) for i in range(LATTICE)], axis=1)


def _joined(a: _Piece, b: _Piece, rng: np.random.Generator) -> _Piece:
    """b put on, beside or within a, overlapping a little."""
    low_a, high_a = a.box()
    low_b, high_b = b.box()
    side = high_a - low_a
    scale = rng.uniform(0.3, 1.0) * side.max() / max(float((high_b - low_b).max()), 1e-6)
    b = b.moved(scale, -scale * (low_b + high_b) / 2)
    half = scale * (high_b - low_b) / 2
    centre = (low_a + high_a) / 2
    place = centre + rng.uniform(-0.35, 0.35, 3) * side
    where = rng.choice(["on", "beside", "within"], p=[0.4, 0.35, 0.25])
    overlap = rng.uniform(0.0, 0.15)
    if where == "on":
        place[1] = high_a[1] + half[1] - overlap * min(side[1], 2 * half[1])
    elif where == "beside":
        axis, sign = int(rng.choice([0, 2])), float(rng.choice([-1, 1]))
        place[axis] = centre[axis] + sign * (side[axis] / 2 + half[axis] - overlap * min(side[axis], 2 * half[axis]))
        if rng.random() < 0.7:
            place[1] = low_a[1] + half[1]  # both stand on the ground
    b = b.moved(1.0, place)
    return _Piece((*a.parts, *b.parts), [*a.vertices, *b.vertices])


def _fitted(vertices: list[FloatArray]) -> list[FloatArray]:
    """Vertices moved into the unit sphere."""
    everything = np.concatenate(vertices)
    centre = (everything.min(axis=0) + everything.max(axis=0)) / 2
    radius = np.linalg.norm(everything - centre, axis=1).max()
    return [(v - centre) / max(float(radius), 1e-9) for v in vertices]
