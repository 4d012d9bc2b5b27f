"""Time and peak GPU memory of Stable Video 3D's stages, in each memory mode, by random weights of the true size.

    python tools/gpu/bench_sv3d.py --out sv3d.jsonl

Weights do not change what a pass costs, so that nothing has to be downloaded. Each mode runs in a process of its own
whose GPU memory is capped to that of the card the mode is meant for, half a gigabyte short (the desktop's share): what
does not fit fails as it would there. docs/lab/performance.md explains the columns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import im3d  # before torch, as in the product: it tells OpenMP not to spin

# isort: split
import numpy as np
import torch

from im3d.core.images import FloatArray
from im3d.core.orbit import Orbit
from im3d.core.progress import silent
from im3d.errors import OutOfMemoryError
from im3d.generators.base import Subject
from im3d.generators.sampling import Denoiser
from im3d.generators.sv3d.generator import Conditioning, Sv3dGenerator
from im3d.generators.sv3d.network import SV3D_P, Sv3dConfig, Sv3dNetworks, empty_networks
from im3d.models.memory_modes import GIGABYTE, MODES

SPARED_GB = 0.5
SIZES = ("16x512", "21x576")
TINY = Sv3dConfig(1280, (32, 64, 96, 96), (1, 2, 3, 3), 32, (32, 64, 96, 96), 32, 64, 2, 2, 14, 56)


def random_networks(config: Sv3dConfig, half: torch.dtype, device: str = "cpu") -> Sv3dNetworks:
    """The three networks, filled with noise small enough that nothing overflows in half precision."""
    networks = empty_networks(config)
    for network, dtype in ((networks.unet, half), (networks.image_encoder, half), (networks.vae, torch.float32)):
        network.to(dtype).to_empty(device=device).requires_grad_(False)
        # A million draws over and over: on a processor two billion take longer than all that is measured.
        pool = torch.randn(1 << 20, device=device)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                spread = 0.5 / max(1, tensor[0].numel() if tensor.ndim > 1 else 4) ** 0.5
                draws = (pool * spread).to(tensor.dtype)
                for chunk in tensor.flatten().split(len(draws)):
                    chunk.copy_(draws[: len(chunk)])
    # The one buffer that is no weight numbers the patches.
    embeddings = networks.image_encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).expand(1, -1)
    return networks


class Stopwatch:
    """Seconds and peak GPU memory of named parts, added up over their calls. Parts may lie within parts.

    Attributes:
        rows: By part: calls, seconds, and on a GPU allocated_gb and reserved_gb.
    """

    # The peaks of the parts that are going on, of all stopwatches: torch has one gauge, which each part sets to zero.
    _open: ClassVar[list[dict[str, float]]] = []

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        peaks: dict[str, float] = {}
        if self._cuda:
            self._read_gauge()
            torch.cuda.reset_peak_memory_stats()
        self._open.append(peaks)
        start = time.perf_counter()
        try:
            yield
            if self._cuda:
                self._read_gauge()
        finally:
            self._open.pop()
        row = self.rows.setdefault(name, {"calls": 0, "seconds": 0.0})
        row["calls"] += 1
        row["seconds"] += time.perf_counter() - start
        row |= {key: max(row.get(key, 0), peak) for key, peak in peaks.items()}

    def _read_gauge(self) -> None:
        """Raises the peaks of all parts that are going on."""
        torch.cuda.synchronize()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        for peaks in self._open:
            for key, value in (("allocated_gb", allocated), ("reserved_gb", reserved)):
                peaks[key] = max(peaks.get(key, 0), value / GIGABYTE)


class Measured(Sv3dGenerator):
    """SV3D with a stopwatch and a memory gauge on each of its parts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watch = Stopwatch(self._device)
        self.prefix = ""

    def condition(self, picture: FloatArray, orbit: Orbit) -> Conditioning:
        with self.watch.part(f"{self.prefix}condition"):
            return super().condition(picture, orbit)

    def encode(self, pictures: FloatArray) -> torch.Tensor:
        with self.watch.part(f"{self.prefix}encode"):
            return super().encode(pictures)

    def denoiser(self, conditioning: Conditioning) -> Denoiser:
        denoise = super().denoiser(conditioning)

        def measured(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            with self.watch.part(f"{self.prefix}denoise"):
                return denoise(x, sigma)

        return measured

    def cut_outs(self, pictures: Iterable[FloatArray], orbit: Orbit) -> FloatArray:
        # Views are cut out while others are decoded.
        with self.watch.part(f"{self.prefix}decode"):
            return super().cut_outs(pictures, orbit)


def bench(
    mode: str, views: int, size: int, steps: int, restart: int, device: str, tiny: bool, compiled: bool = False
) -> dict[str, Any]:
    """One mode at one size: the first orbit, and one refinement.

    Returns:
        {mode, …, cap_gb, error, network_calls, parts: {name: {calls, seconds, allocated_gb, reserved_gb}}}.
    """
    cap = None
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / GIGABYTE
        cap = min(total, float(mode) - SPARED_GB)
        torch.cuda.set_per_process_memory_fraction(cap / total)
    half = torch.float16 if device == "cuda" else torch.float32
    config = TINY if tiny else SV3D_P
    generator = Measured(
        "sv3d_p",
        device,
        elevation_deg=10.0,
        views=views,
        size=size,
        steps=steps,
        memory=mode,
        segment=lambda rgb: _disc(len(rgb)),
        config=config,
        networks=random_networks(config, half),
        compiled=compiled,
    )
    subject = Subject(np.dstack([np.full((size, size, 3), 0.5, np.float32), _disc(size)]))
    answer: dict[str, Any] = {"mode": mode, "views": views, "size": size, "steps": steps, "restart_steps": restart}
    answer |= {"im3d": im3d.__version__, "compiled": compiled}
    answer |= {"device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu", "cap_gb": cap, "error": None}
    try:
        # The first passes choose kernels; they are not what a user waits for twice.
        if device == "cuda":
            generator.generate(subject, 0, silent)
            generator.watch.rows.clear()
            generator.network_calls = 0
        drawn = None
        for prefix in ("first ", "refine "):
            generator.prefix = prefix
            start = time.perf_counter()
            if drawn is None:
                drawn = generator.generate(subject, 0, silent)
            else:
                generator.refine(subject, drawn, generator.refine_noise, restart, 1, silent)
            generator.watch.rows[f"{prefix}whole"] = {"calls": 1, "seconds": time.perf_counter() - start}
        answer["network_calls"] = generator.network_calls
    except OutOfMemoryError as error:
        answer["error"] = str(error)
    return {**answer, "parts": generator.watch.rows}


def _disc(size: int) -> FloatArray:
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    return (x**2 + y**2 < 0.16).astype(np.float32)


def table(answers: list[dict[str, Any]]) -> str:
    """The answers as Markdown."""
    lines = [
        "| mode | views | part | calls | seconds | allocated, GB | reserved, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for answer in answers:
        what = f"| {answer['mode']} GB | {answer['views']} of {answer['size']}² |"
        for part, row in answer["parts"].items():
            memory = [f"{row[key]:.2f}" if key in row else "" for key in ("allocated_gb", "reserved_gb")]
            lines.append(f"{what} {part} | {row['calls']} | {row['seconds']:.2f} | {' | '.join(memory)} |")
        if answer["error"]:
            lines.append(f"{what} {answer['error']} | | | | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and GPU memory of Stable Video 3D, by random weights.")
    parser.add_argument("--modes", default=",".join(m.name for m in MODES), help="memory modes, with commas")
    parser.add_argument("--sizes", default=",".join(SIZES), help="views x side in pixels, with commas")
    parser.add_argument("--steps", type=int, default=20, help="of the first orbit")
    parser.add_argument("--restart-steps", type=int, default=10, help="of a refinement")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="with sv3d.compile")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the tool out")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each mode and size")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        mode, size = args.child.split(":")
        views, side = map(int, size.split("x"))
        print(
            json.dumps(bench(mode, views, side, args.steps, args.restart_steps, args.device, args.tiny, args.compile))
        )
        return 0
    answers = []
    for size in args.sizes.split(","):
        for mode in args.modes.split(","):
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--child", f"{mode}:{size}"], capture_output=True, text=True
            )
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            answers.append(json.loads(done.stdout.splitlines()[-1]))
            if args.out:
                args.out.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    print(table(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
