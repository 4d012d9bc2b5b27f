"""The paper's whole budget on a GPU, and what it grows with.

    python tools/gpu/bench_budget.py --views ORBIT --out budget.json
    python tools/gpu/bench_budget.py --views ORBIT --scaling --out scaling.json --plot docs/images/scaling.png

The first runs what a picture costs: an orbit of 16 views of 512² by networks of Stable Video 3D's size, two rounds of
refinement (80 network calls), 1200 iterations of the fit with LPIPS on VGG16, a mesh at 192³, a texture of 1024². The
networks have random weights, which cost the same and draw nothing: a real orbit stands in for what they would have
drawn, in the fit and after. Nothing is downloaded. Between runs the networks rest in the computer's memory, as in the
backend's worker. The second measures a denoising step by views, and an iteration of the fit by views, splats and
resolution.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import im3d  # before torch, as in the product: it tells OpenMP not to spin

# isort: split
import numpy as np
import psutil
import torch
from bench_sv3d import TINY, Measured, Stopwatch, _disc, random_networks

from im3d.core.images import OrbitViews
from im3d.core.memory import give_back_memory, limit_malloc_arenas
from im3d.core.progress import silent
from im3d.generators.base import Subject
from im3d.generators.sv3d.network import SV3D_P, Sv3dNetworks
from im3d.mesh.build import build_surface, texture_surface
from im3d.mesh.gltf import write_glb
from im3d.models.cache import MODELS
from im3d.settings import FitSettings, preset_settings
from im3d.splats.fit import SplatFit
from im3d.splats.render import ready_rasterizer
from im3d.views.files import read_provided_views
from im3d_lab.bench.fit import random_vgg16

VIEWS, SIZE, STEPS, RESTART_STEPS, ROUNDS = 16, 512, 20, 10, 2
FIT = FitSettings(iterations=1200, size=SIZE, max_gaussians=20000)
# Iterations before the first refinement, between the two, and after.
UNTIL = (400, 800, 1200)
SCALED_STEPS, WARM_STEPS = 40, 15


def generator_of(
    networks: Sv3dNetworks, views: int, size: int, device: torch.device, tiny: bool, compiled: bool = False
) -> Measured:
    """SV3D with given networks, all of them kept on the device."""
    return Measured(
        "sv3d_p", device, 10.0, views, size, STEPS, memory="24", segment=lambda rgb: _disc(len(rgb)),
        config=TINY if tiny else SV3D_P, networks=networks, compiled=compiled,
    )  # fmt: skip


def subject_of(size: int) -> Subject:
    return Subject(np.dstack([np.full((size, size, 3), 0.5, np.float32), _disc(size)]))


def budget(
    networks: Sv3dNetworks, views: OrbitViews, device: torch.device, small: bool, compiled: bool
) -> dict[str, Any]:
    """One object as the paper makes it: seconds and GPU memory of each stage."""
    size, fit_settings, until = SIZE, FIT, UNTIL
    if small:
        size, until = 64, (20, 40, 60)
        fit_settings = dataclasses.replace(FIT, iterations=60, size=64, points=500, max_gaussians=1000)
    settings = preset_settings("high")
    watch = Stopwatch(device)
    # Their weights come from where they rest, and are brought to the GPU by the orbit.
    networks = MODELS.get("sv3d", [], (), lambda: networks)
    generator = generator_of(networks, VIEWS, size, device, small, compiled)
    subject = subject_of(size)
    start = time.perf_counter()
    with watch.part("orbit"):
        generator.generate(subject, 0, silent)
    with watch.part("fit"):
        fit = SplatFit(views, fit_settings, 0, device, ready_rasterizer(device), random_vgg16(device))
        fit.run(until[0])
    renders = OrbitViews(views.resized(size).rgba, generator.orbit)
    for number in range(ROUNDS):
        with watch.part("refinements"):
            generator.refine(subject, renders, generator.refine_noise, RESTART_STEPS, number, silent)
        with watch.part("fit"):
            fit.retarget(views)
            fit.run(until[number + 1])
    with watch.part("put to rest"):
        generator.release()
    with watch.part("mesh"):
        gaussians = fit.finished().to("cpu")
        surface = build_surface(gaussians, views, settings.mesh, silent, device)
    with watch.part("texture"):
        textured = texture_surface(surface, gaussians, views, settings.texture, device=device)
    with watch.part("GLB"), tempfile.TemporaryDirectory() as folder:
        write_glb(Path(folder) / "mesh.glb", textured, "bench", 1.0)
    return {"whole_s": time.perf_counter() - start, "network_calls": generator.network_calls,
            "splats": len(gaussians), "faces": len(surface.mesh.faces), "parts": watch.rows,
            "of the generator": generator.watch.rows}  # fmt: skip


def kept(device: torch.device) -> dict[str, float]:
    """What the process holds between two runs, the resting networks among it, in GB of 2³⁰ bytes."""
    resident = {"kept_gb": psutil.Process().memory_info().rss / 2**30}
    gpu = {"kept_on_gpu_gb": torch.cuda.memory_reserved() / 2**30} if device.type == "cuda" else {}
    return {**resident, **gpu}


def median_ms(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds of a call, each waited for."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def iteration_ms(views: OrbitViews, device: torch.device, shown: int, splats: int, size: int) -> float:
    """An iteration of the fit at so many splats; none are added."""
    settings = dataclasses.replace(
        FIT, size=size, points=splats, max_gaussians=splats, views_per_iteration=shown, ramp=0.0, densify_every=10**9
    )
    fit = SplatFit(views, settings, 0, device, ready_rasterizer(device), random_vgg16(device))
    fit.run(WARM_STEPS)
    return median_ms(lambda: fit._step(fit._rows(0)), device, SCALED_STEPS)


def scaling(networks: Sv3dNetworks, views: OrbitViews, device: torch.device, small: bool) -> dict[str, Any]:
    """{what: [[value, milliseconds], …]}, one thing changed at a time."""
    sizes, splats, counts, orbits = (256, 384, 512, 768), (5000, 10000, 20000, 40000), (1, 2, 4, 8), (8, 16, 24)
    if small:
        sizes, splats, counts, orbits = (48, 64), (200, 400), (1, 2), (2, 4)
    middle = (counts[-2], splats[-2], sizes[-2])
    found: dict[str, Any] = {
        "views of an iteration": [[v, iteration_ms(views, device, v, *middle[1:])] for v in counts],
        "splats": [[n, iteration_ms(views, device, middle[0], n, middle[2])] for n in splats],
        "pixels a side": [[s, iteration_ms(views, device, *middle[:2], s)] for s in sizes],
    }
    steps = []
    for count in orbits:
        size = 64 if small else SIZE
        generator = generator_of(networks, count, size, device, small)
        with torch.inference_mode():
            conditioning = generator.condition(np.full((size, size, 3), 0.5, np.float32), generator.orbit)
            denoise = generator.denoiser(conditioning)
            x, sigma = torch.randn(count, 4, size // 8, size // 8, device=device), torch.tensor(5.0)
            denoise(x, sigma)
            steps.append([count, median_ms(lambda d=denoise, x=x, s=sigma: d(x, s), device, 6)])  # type: ignore[misc]
    return {**found, "views of an orbit": steps}


def plot(found: dict[str, Any], path: Path) -> None:
    """Cost against each thing, a panel each."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    titles = [k for k, points in found.items() if isinstance(points, list)]
    figure, panels = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 2.9))
    for panel, title in zip(panels, titles, strict=True):
        x, y = zip(*found[title], strict=True)
        panel.plot(x, y, "o-", color="#3b6ea5")
        panel.set_xlabel(title, fontsize=9)
        panel.set_ylim(0)
        panel.set_xlim(0)
        panel.grid(color="#dddddd")
        panel.tick_params(labelsize=8)
        what = "a denoising step" if title == "views of an orbit" else "an iteration of the fit"
        panel.set_title(f"{what} (ms)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description="The paper's whole budget, by networks with random weights.")
    parser.add_argument("--views", type=Path, required=True, help="folder of an orbit of 16 views that stands in")
    parser.add_argument("--scaling", action="store_true", help="instead: what a step costs by views, splats, pixels")
    parser.add_argument("--repeats", type=int, default=3, help="whole runs after the first (default: 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="with sv3d.compile")
    parser.add_argument("--tiny", action="store_true", help="small everything, to try the tool out")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path, help="PNG of --scaling")
    parser.add_argument("--heaps", action="store_true", help="leave every thread a heap of its own")
    args = parser.parse_args()
    if not args.heaps:
        limit_malloc_arenas()  # as the worker does
    device = torch.device(args.device)
    views = read_provided_views(args.views).views
    half = torch.float16 if device.type == "cuda" else torch.float32
    networks = random_networks(TINY if args.tiny else SV3D_P, half, args.device if args.scaling else "cpu")
    answer: dict[str, Any] = {"im3d": im3d.__version__, "compiled": args.compile, "heaps": args.heaps}
    answer["device"] = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    if args.scaling:
        answer |= scaling(networks, views, device, args.tiny)
        if args.plot:
            plot(answer, args.plot)
    else:
        runs: list[dict[str, Any]] = []
        with MODELS.keeping():
            for _ in range(1 + args.repeats):
                runs.append(budget(networks, views, device, args.tiny, args.compile))
                gc.collect()
                give_back_memory()
                runs[-1] |= kept(device)
                # Each at once, so that a run that is cut off is not lost.
                print(json.dumps(runs[-1]), flush=True)
        answer |= {"cold": runs[0], "warm": runs[1:], "median_s": statistics.median(r["whole_s"] for r in runs[1:])}
        print(table(answer))
    if args.out:
        args.out.write_text(json.dumps(answer, indent=1), encoding="utf-8")
    print(json.dumps(answer))
    return 0


def table(answer: dict[str, Any]) -> str:
    """The runs as Markdown."""
    lines = ["| stage | first (s) | median (s) | fastest … slowest | GPU (GB) |", "|---|---:|---:|---|---:|"]
    for part, cold in answer["cold"]["parts"].items():
        warm = [run["parts"][part]["seconds"] for run in answer["warm"]]
        spread = f"{min(warm):.2f} … {max(warm):.2f}"
        seconds, peak = f"{cold['seconds']:.2f} | {statistics.median(warm):.2f}", cold.get("allocated_gb", 0)
        lines.append(f"| {part} | {seconds} | {spread} | {peak:.1f} |")
    whole = [run["whole_s"] for run in answer["warm"]]
    spread = f"{min(whole):.2f} … {max(whole):.2f}"
    lines.append(f"| whole | {answer['cold']['whole_s']:.2f} | {answer['median_s']:.2f} | {spread} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
