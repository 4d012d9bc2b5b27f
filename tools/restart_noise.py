"""What the noise of a refinement hides, beside what it should hide: the part of σ_r's choice that needs no generator.

    python tools/restart_noise.py examples/playhouse examples/football_table examples/yogurt_bottle

The paper's loop (3.4) adds noise of level σ_r to the splats' renders and denoises them. It is meant to redraw where the
renders are wrong and to keep where they are right. Both can be measured by spatial frequency on objects whose true
views are known. Splats are fitted to views that were bent on purpose (`im3d_lab.evaluate.warp`), and of rings of
frequencies, in cycles per picture, two things are printed:

    wrong   the energy of render minus truth over that of the truth
    kept    the share of the truth's energy that the best linear denoiser gets back from noise of level σ_r

Latents are stood in for by means of 8×8 pixels with mean 0 and variance 1, about what the autoencoder makes of
photographs. The denoiser is Wiener's, P/(P + σ²) with P the mean energy in a ring at a frequency along the orbit: it
pools the views, but knows nothing of objects and does not see the input picture. An ideal denoiser gets back more, so
"kept" is a lower bound. How good a network's drawings are cannot be learned here: where weights are installed,
`im3d evaluate --source sv3d_u --ablation noise` measures that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from im3d.core.images import OrbitViews, over, read_views
from im3d.settings import preset_settings
from im3d.splats.fit import SplatFit
from im3d.splats.losses.perceptual import load_perceptual
from im3d.splats.render import best_rasterizer
from im3d_lab.evaluate.consistency import render_splats
from im3d_lab.evaluate.warp import warped

SIGMAS = (1.3, 2.3, 3.9, 6.4, 10.0, 16.0)
# Cycles per picture: from the whole outline to the finest that 72² latents hold.
RINGS = ((0.5, 2), (2, 4), (4, 6), (6, 9), (9, 13), (13, 18), (18, 25), (25, 36))
# SV3D's views, and the pixels of one latent.
SIZE, BLOCK = 576, 8

FloatArray = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Ring:
    """One row of the table.

    Attributes:
        low, high: Spatial frequencies in cycles per picture.
        wrong: Energy of the renders' error over that of the truth.
        kept: Share of the truth's energy that survives each of `SIGMAS`.
    """

    low: float
    high: float
    wrong: float
    kept: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", nargs="+", type=Path, metavar="FOLDER", help="true views with their cameras")
    parser.add_argument(
        "--iterations", type=int, default=500, metavar="N", help="of the fit (default: 500, the paper's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of distortions and fits (default: 0)")
    args = parser.parse_args()
    surveys = []
    for folder in args.views:
        truth = read_views(folder)
        renders = fitted_renders(truth, args.iterations, args.seed)
        surveys.append(survey(latents(over(truth.rgba)), latents(over(renders.rgba), over(truth.rgba))))
        print(f"{folder.name}: done", file=sys.stderr, flush=True)
    print(table(surveys))


def fitted_renders(truth: OrbitViews, iterations: int, seed: int) -> OrbitViews:
    """Renders, at the true cameras, of splats fitted to the bent views with the product's settings for drawn views."""
    device = torch.device("cpu")
    settings = preset_settings("standard").fit
    fit = SplatFit(warped(truth, seed), settings, seed, device, best_rasterizer(device), load_perceptual(device))
    fit.run(iterations)
    return OrbitViews(render_splats(fit.gaussians(), truth.orbit.cameras(truth.size)), truth.orbit)


def latents(pictures: NDArray[np.float32], like: NDArray[np.float32] | None = None) -> FloatArray:
    """Block means of (K, S, S, 3) pictures, (K, 72, 72, 3), standardised by those of `like` or of themselves."""
    means, scale = _block_means(pictures), _block_means(pictures if like is None else like)
    return (means - scale.mean()) / scale.std()


def _block_means(pictures: NDArray[np.float32]) -> FloatArray:
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, 1)))
    large = torch.nn.functional.interpolate(tensor, size=(SIZE, SIZE), mode="bicubic", antialias=True)
    return np.moveaxis(torch.nn.functional.avg_pool2d(large, BLOCK).double().numpy(), 1, -1)


def survey(truth: FloatArray, renders: FloatArray) -> list[Ring]:
    """The rows for one object.

    Args:
        truth: (K, s, s, C) standardised latents of the true views.
        renders: Of the splats' renders, on the same scale.
    """
    energy, error = (np.abs(np.fft.fftn(x, axes=(0, 1, 2), norm="ortho")) ** 2 for x in (truth, renders - truth))
    frequency = np.fft.fftfreq(truth.shape[1], 1 / truth.shape[1])
    radius = np.hypot(frequency[:, None], frequency)
    rings = []
    for low, high in RINGS:
        ring = (radius >= low) & (radius < high)
        power = energy[:, ring].mean(axis=(1, 2))  # by frequency along the orbit
        kept = tuple(float((power**2 / (power + sigma**2)).sum() / power.sum()) for sigma in SIGMAS)
        rings.append(Ring(low, high, float(error[:, ring].sum() / energy[:, ring].sum()), kept))
    return rings


def table(surveys: list[list[Ring]]) -> str:
    """Means over the objects, in Markdown; per cent."""
    header = ["cycles per picture", "wrong (%)", *(f"kept at {sigma:g} (%)" for sigma in SIGMAS)]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (1 + len(SIGMAS))]
    for rings in zip(*surveys, strict=True):
        numbers = np.mean([[r.wrong, *r.kept] for r in rings], axis=0)
        cells = " | ".join(f"{100 * n:.1f}" if i == 0 else f"{100 * n:.0f}" for i, n in enumerate(numbers))
        lines.append(f"| {rings[0].low:g} to {rings[0].high:g} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
