"""Every setting of the pipeline, its default, and the presets: said once, here.

`--set section.name=value` on the command line and `settings` in a job request change any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from im3d.errors import InputError

ImageMemory = Literal["auto", "whole", "offload", "compressed"]
Preset = Literal["draft", "standard", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
# What may make the views; "auto" takes the best that is installed and fits.
GENERATORS = ("auto", "files", "mini", "sv3d_u", "sv3d_p")


@dataclass(frozen=True)
class FitSettings:
    """Gaussians fitted to the views (paper 3.3, A.1).

    Attributes:
        iterations: Optimiser steps in all.
        size: Side in pixels of the renders that are compared; views are resized to it. 0: the size of the views.
        ramp: Share of the iterations, the first ones, that compare pictures of half the size. They cost half as much,
            and splats that fit coarsely first are a little better in the end (docs/performance.md), but for parts a
            pixel or two thick: exact views do without.
        views_per_iteration: Views compared in each step. 0: one on the CPU, four on a GPU.
        init: "hull" starts from points on the silhouettes' visual hull, "ball" from random points about the centre
            (the paper's).
        points: Gaussians at the start.
        max_gaussians: Densification stops growing here.
        refine_every: Steps between densify-and-prune passes.
        lpips: Weight of the perceptual loss (10 in the paper).
        lpips_shrink: The perceptual loss sees pictures reduced by this whole factor: 2 costs a quarter. Taking it at
            every other step with twice the weight instead upsets the optimiser (3 dB on inconsistent views).
        ms_ssim: Weight of 1 − MS-SSIM (0.2 in the paper).
        mask: Weight of the squared mask error (1 in the paper).
        rgb: Weight of the mean absolute colour error; the paper has none.
    """

    iterations: int = 1200
    size: int = 256
    ramp: float = 0.7
    views_per_iteration: int = 0
    init: Literal["hull", "ball"] = "hull"
    points: int = 5000
    max_gaussians: int = 40000
    refine_every: int = 50
    lpips: float = 10.0
    lpips_shrink: int = 1
    ms_ssim: float = 0.2
    mask: float = 1.0
    rgb: float = 0.0


@dataclass(frozen=True)
class MeshSettings:
    """The surface taken from the splats (paper A.5 and beyond).

    Attributes:
        route: "fusion" fuses median depth maps; "density" is the paper's own marching cubes on the splats' density.
        grid: Samples along each side of the distance field.
        faces: Triangles of the finished mesh, at most.
        truncation: Distances are trusted this far from a surface, in voxels of a 192³ grid.
        behind: Weight of the vote "inside" far behind a surface; 0 lets a crack in one view hollow the object out, more
            than 0.2 fills concavities.
        blur: Standard deviation of the field's smoothing, in voxels of a 192³ grid.
        slack: Pixels by which silhouettes are widened before they cut the field.
        virtual_slack: The same for silhouettes that the splats cast into low virtual cameras.
        virtual_views: Virtual cameras whose depth maps are fused too.
        outline_rounds: How often the vertices are moved to meet the masks' outlines.
        density_grid: Samples along each side for the density route.
    """

    route: Literal["fusion", "density"] = "fusion"
    grid: int = 192
    faces: int = 20000
    truncation: float = 8.0
    behind: float = 0.15
    blur: float = 1.0
    slack: float = 0.25
    virtual_slack: float = 0.75
    virtual_views: int = 32
    outline_rounds: int = 3
    density_grid: int = 128


@dataclass(frozen=True)
class TextureSettings:
    """The texture baked from the views.

    Attributes:
        size: Side of the square texture in pixels.
        normal_map: Whether a tangent-space normal map of the full-resolution surface is baked too.
        polish: Rounds of back-projection that sharpen the blended views.
        polish_step: Share of the difference that each round gives back.
        input_weight: How much more the picture that an orbit was made from counts than the views that a network made of
            it: it alone is sharp, and true.
    """

    size: int = 1024
    normal_map: bool = True
    polish: int = 3
    polish_step: float = 0.7
    input_weight: float = 20.0


@dataclass(frozen=True)
class RefineSettings:
    """The paper's loop (3.4): splat renders are noised and denoised again by the generator.

    Attributes:
        rounds: How often; 0 switches it off.
        every: Fit iterations before each round.
        noise: Share of the noise ladder that the renders are lifted to, in (0, 1]: the paper's σ_r, which it does not
            state. 0: what suits the generator.
        steps: Evaluations of the network in each round: denoising steps, or, for `mini`, restarts that are averaged.
        raise_deg: Each round also draws a second orbit, raised by so many degrees, and the fit goes on towards both; 0
            for none. Only `sv3d_p` can be told an elevation. Beyond the paper: views from above fix what a single ring
            cannot see, at twice the network calls.
    """

    rounds: int = 2
    every: int = 500
    noise: float = 0.0
    steps: int = 10
    raise_deg: float = 0.0


@dataclass(frozen=True)
class ImageSettings:
    """The picture made from a sentence.

    Attributes:
        model: The text-to-image model; "auto" is the first that is installed, in this order.
        orbit_prompt: Whether words that help orbits are added to the prompt (one object, plain background).
        size: Side of the picture in pixels, a multiple of 16. 0: what the model was made for.
        steps: Denoising steps. 0: what the model's makers advise.
        memory: All networks on the GPU at once ("whole"), each only while it works ("offload"), or the same with 8-bit
            weights ("compressed"); "auto" goes by what is free.
    """

    model: Literal["auto", "flux2_klein", "z_image_turbo", "sdxl"] = "auto"
    orbit_prompt: bool = True
    size: int = 0
    steps: int = 0
    memory: ImageMemory = "auto"


@dataclass(frozen=True)
class Sv3dSettings:
    """The orbit drawn by Stable Video 3D (paper 3.1, with a public model in the place of the paper's).

    Attributes:
        views: K. The model was trained with 21; the paper has 16.
        size: Side of the views in pixels, a multiple of 64. The model was trained at 576; the paper has 512.
        steps: Denoising steps of the first orbit. Each is two evaluations of the network, with and without the subject:
            20 steps are the paper's "around 40 evaluations" (3.4).
        guidance: Scale of the classifier-free guidance opposite the input view.
        memory: Size in GB of the GPU that memory is arranged for; "auto" goes by what is free.
        compile: Whether the network's blocks are compiled: a denoising step takes a third less time, after a minute and
            a half once on a machine and ten seconds in each process. Worth it for many objects.
        finetuned: A temporal.safetensors of `im3d train finetune`, laid over the published weights; "" for none.
    """

    views: int = 21
    size: int = 576
    steps: int = 20
    guidance: float = 2.5
    memory: Literal["auto", "24", "12", "8"] = "auto"
    compile: bool = False
    finetuned: str = ""


@dataclass(frozen=True)
class MiniSettings:
    """The orbit drawn by our own small generator.

    Attributes:
        views: K: 16, or only 8 or 4 of the ring, which the paper's Table 3 compares.
        steps: Denoising steps of the first orbit, one evaluation of the network each. The network is trained to hit the
            mean of what is possible, and one step does; more leave grain (docs/training-log.md).
    """

    views: int = 16
    steps: int = 1


@dataclass(frozen=True)
class Settings:
    """All sections."""

    fit: FitSettings = field(default_factory=FitSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    texture: TextureSettings = field(default_factory=TextureSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    sv3d: Sv3dSettings = field(default_factory=Sv3dSettings)
    mini: MiniSettings = field(default_factory=MiniSettings)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Nested dictionaries of plain values."""
        return dataclasses.asdict(self)


# What each preset changes. All keep the paper's losses; "paper" spends what the paper spends.
PRESET_CHANGES: dict[Preset, dict[str, object]] = {
    "draft": {
        "fit.iterations": 500,
        "fit.max_gaussians": 12000,
        "fit.lpips_shrink": 2,
        "refine.rounds": 0,
        "mesh.grid": 128,
        "texture.polish": 1,
    },
    "standard": {"fit.max_gaussians": 20000},
    "paper": {"fit.ramp": 0.0},
}
# Views that the user brings show one object exactly, and colours compared pixel by pixel then give a sharper result.
# Views that a network made disagree in detail: there the paper's perceptual loss is better. "paper" keeps to the paper.
GIVEN_VIEWS_CHANGES: dict[str, object] = {
    "fit.lpips": 0.0,
    "fit.ms_ssim": 0.0,
    "fit.rgb": 2.0,
    "fit.ramp": 0.0,
    "fit.views_per_iteration": 2,
}
# Their outlines are soft and disagree too. Cut or moved by each of them, thin parts fray.
GENERATED_VIEWS_CHANGES: dict[str, object] = {
    "mesh.blur": 2.0,
    "mesh.slack": 2.0,
    "mesh.virtual_slack": 2.0,
    "mesh.outline_rounds": 0,
}
# More splats and iterations fit what such views disagree in: fewer came out as good (docs/performance.md).
STANDARD_GENERATED_CHANGES: dict[str, object] = {
    "fit.iterations": 800,
    "fit.max_gaussians": 12000,
    "refine.every": 330,
}


def preset_settings(preset: Preset, given_views: bool = False) -> Settings:
    """The settings of a preset, for views that the user brings or for generated ones."""
    changes = dict(PRESET_CHANGES[preset])
    if not given_views:
        changes |= GENERATED_VIEWS_CHANGES
        if preset == "standard":
            changes |= STANDARD_GENERATED_CHANGES
    elif preset != "paper":
        changes |= GIVEN_VIEWS_CHANGES
    settings = Settings()
    for name, value in changes.items():
        settings = changed(settings, name, value)
    return settings


def parse_overrides(settings: Settings, assignments: Iterable[str]) -> Settings:
    """Settings with `section.name=value` texts applied.

    Raises:
        InputError: Unknown name, or a value of the wrong type.
    """
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text} has no '='.", "Write section.name=value, for example fit.iterations=800.")
        settings = changed(settings, name.strip(), value.strip())
    return settings


def changed(settings: Settings, name: str, value: object) -> Settings:
    """Settings with one field, `section.name`, replaced; texts are converted to the field's type.

    Raises:
        InputError: Unknown name, or a value of the wrong type.
    """
    section_name, _, field_name = name.partition(".")
    section = getattr(settings, section_name, None)
    if section is None or field_name not in {f.name for f in dataclasses.fields(section)}:
        known = [f"{s.name}.{f.name}" for s in dataclasses.fields(settings) for f in _fields(settings, s.name)]
        raise InputError(f"There is no setting {name}.", f"Known settings: {', '.join(known)}.")
    hint = get_type_hints(type(section))[field_name]
    section = dataclasses.replace(section, **{field_name: _converted(name, hint, value)})
    return dataclasses.replace(settings, **{section_name: section})


def settings_from_json(data: dict[str, dict[str, Any]]) -> Settings:
    """The inverse of `Settings.to_json`; fields that are absent keep their defaults.

    Raises:
        InputError: Unknown name, or a value of the wrong type.
    """
    settings = Settings()
    for section, values in data.items():
        for name, value in values.items():
            settings = changed(settings, f"{section}.{name}", value)
    return settings


def _fields(settings: Settings, section: str) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(getattr(settings, section))


def _converted(name: str, hint: Any, value: object) -> object:
    choices = get_args(hint)
    if choices:
        if value in choices:
            return value
        raise InputError(f"{name} cannot be {value}.", f"Choose one of: {', '.join(map(str, choices))}.")
    try:
        if hint is bool:
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return hint(value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be {value}.", f"Give a value of type {hint.__name__}.") from error
