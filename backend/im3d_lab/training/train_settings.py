"""The settings of `im3d train mini`; each is an option of the command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run.

    Attributes:
        batch: Orbits in each step, over all GPUs.
        steps: Stop at this step, counted from the start of all training; 0: no limit.
        minutes: Stop after that long, counted from the start of the run; 0: no limit.
        learning_rate: Of AdamW and Muon, after the warm-up.
        warmup: Steps over which the learning rate rises, counted from fresh weights or `--init`; a resume goes on.
        decay: Last share of the run (by steps or minutes, whichever is further) over which it falls to 2 %.
        weight_decay: Of both.
        muon: Whether the blocks' weights are trained by Muon; the rest, or all, by AdamW.
        ema: Largest decay of the averaged weights.
        rendered_views: Views of each orbit that are rendered, denoised and compared; 0: only the volume is trained.
        volume_first: First share of the run in which only the volume is trained.
        frozen_shape: Only the decoder is trained; the props' grids are not needed then.
        volume_weight: Weight of the cross entropy of the cells' occupancy.
        color_weight: Weight of the error of the occupied cells' colours.
        coarse_weight: Weight of the squared error of the rendered views.
        mask_weight: Weight of 1 − IoU of the views' coverages, rendered and denoised, which rewards decided outlines
            and counts thin props as much as bulky ones.
        perceptual_weight: Weight of the perceptual distance of the denoised views (`PictureDistance`).
        elevation_weight: Weight of the squared elevation error, in units of the elevations' spread.
        elevation_jitter: Standard deviation in degrees of the error added to the elevation from which views are
            rendered: sampling uses the network's own estimates.
        noise_mean: Mean of ln σ at 64 pixels; ln(size/64) is added.
        noise_spread: Standard deviation of ln σ.
        blind: Share of the orbits whose σ is sampled from the ladder's upper end, where next to nothing of the views
            is visible.
        compile: Whether the repeated blocks are compiled.
        validate_minutes: Minutes between validations, which save the state too; 0: only at the end.
        validate_orbits: Orbits of each pack compared in each.
        seed: Of everything random.
    """

    batch: int = 64
    steps: int = 0
    minutes: float = 0.0
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.0
    weight_decay: float = 0.05
    muon: bool = False
    ema: float = 0.998
    rendered_views: int = 3
    volume_first: float = 0.0
    frozen_shape: bool = False
    volume_weight: float = 10.0
    color_weight: float = 1.0
    coarse_weight: float = 1.0
    mask_weight: float = 0.0
    perceptual_weight: float = 0.0
    elevation_weight: float = 0.05
    elevation_jitter: float = 2.0
    noise_mean: float = 0.0
    noise_spread: float = 1.5
    blind: float = 0.4
    compile: bool = False
    validate_minutes: float = 0.0
    validate_orbits: int = 64
    seed: int = 0
