"""Every setting of the pipeline, its default, and the presets.

`--set section.name=value` on the command line and `settings` in a job request change any of them, within the bounds
that stand beside each field; docs/reference/settings.md lists them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from im3d.errors import InputError
from im3d.shared.names import Preset

ImageMemory = Literal["auto", "whole", "offload", "compressed"]


class Bounds(NamedTuple):
    """What a number may be.

    Attributes:
        low: Least.
        high: Largest.
        multiple: Of what it must be a multiple; 0: of nothing.
        zero: Whether 0 is allowed besides, with a meaning of its own.
    """

    low: float
    high: float
    multiple: int = 0
    zero: bool = False

    def hold(self, value: float) -> bool:
        """Whether the value is one of these; NaN never is."""
        if self.zero and value == 0:
            return True
        return self.low <= value <= self.high and not (self.multiple and value % self.multiple)

    def __str__(self) -> str:
        text = f"{self.low:g} to {self.high:.0f}" + (f" in steps of {self.multiple}" if self.multiple else "")
        return f"0, or {text}" if self.zero else text


@dataclass(frozen=True)
class FitSettings:
    """Gaussians fitted to the views (paper 3.3, A.1).

    Attributes:
        iterations: Optimiser steps in all.
        size: Side in pixels of the renders that are compared; views are resized to it. 0: the size of the views.
        ramp: Share of the iterations, the first ones, that compare pictures of half the size. They cost half as much,
            and splats that fit coarsely first are a little better in the end (docs/lab/performance.md), but for parts a
            pixel or two thick: exact views do without.
        views_per_iteration: Views compared in each step. 0: one on the CPU, four on a GPU.
        init: "hull" starts from points on the silhouettes' visual hull, "ball" from random points about the centre
            (the paper's).
        points: Gaussians at the start.
        max_gaussians: Densification stops growing here.
        densify_every: Iterations between two passes of densification and pruning (50 in the paper).
        lpips: Weight of the perceptual loss (10 in the paper).
        lpips_shrink: The perceptual loss sees pictures reduced by this whole factor: 2 costs a quarter. Taking it at
            every other step with twice the weight instead upsets the optimiser (3 dB on inconsistent views).
        ms_ssim: Weight of 1 − MS-SSIM (0.2 in the paper).
        mask: Weight of the squared mask error (1 in the paper).
        rgb: Weight of the mean absolute colour error; the paper has none.
    """

    iterations: Annotated[int, Bounds(1, 100_000)] = 1200
    size: Annotated[int, Bounds(32, 2048, zero=True)] = 256
    ramp: Annotated[float, Bounds(0, 1)] = 0.7
    views_per_iteration: Annotated[int, Bounds(0, 64)] = 0
    init: Literal["hull", "ball"] = "hull"
    points: Annotated[int, Bounds(100, 1_000_000)] = 5000
    max_gaussians: Annotated[int, Bounds(100, 2_000_000)] = 40000
    densify_every: Annotated[int, Bounds(1, 100_000)] = 50
    lpips: Annotated[float, Bounds(0, 1000)] = 10.0
    lpips_shrink: Annotated[int, Bounds(1, 8)] = 1
    ms_ssim: Annotated[float, Bounds(0, 1000)] = 0.2
    mask: Annotated[float, Bounds(0, 1000)] = 1.0
    rgb: Annotated[float, Bounds(0, 1000)] = 0.0


@dataclass(frozen=True)
class MeshSettings:
    """The surface taken from the splats (paper A.5 and beyond).

    Attributes:
        route: "fusion" fuses median depth maps; "density" is the paper's own marching cubes on the splats' density.
        grid: Samples along each side of the distance field.
        faces: Triangles of the finished mesh, at most.
        truncation: Distances are trusted this far from a surface, in voxels of a 192³ grid.
        occlusion_vote_weight: Weight of the vote "inside" that a depth map casts for what it does not see, far behind
            its surface. 0 lets a crack in one view hollow the object out, more than 0.2 fills concavities.
        blur: Standard deviation of the field's smoothing, in voxels of a 192³ grid.
        slack: Pixels by which silhouettes are widened before they cut the field.
        virtual_slack: The same for silhouettes that the splats cast into low virtual cameras.
        virtual_views: Virtual cameras whose depth maps are fused too.
        outline_rounds: How often the vertices are moved to meet the masks' outlines.
        density_grid: Samples along each side for the density route.
    """

    route: Literal["fusion", "density"] = "fusion"
    grid: Annotated[int, Bounds(16, 512)] = 192
    faces: Annotated[int, Bounds(100, 1_000_000)] = 20000
    truncation: Annotated[float, Bounds(0.5, 100)] = 8.0
    occlusion_vote_weight: Annotated[float, Bounds(0, 1)] = 0.15
    blur: Annotated[float, Bounds(0, 20)] = 1.0
    slack: Annotated[float, Bounds(0, 50)] = 0.25
    virtual_slack: Annotated[float, Bounds(0, 50)] = 0.75
    virtual_views: Annotated[int, Bounds(1, 256)] = 32
    outline_rounds: Annotated[int, Bounds(0, 20)] = 3
    density_grid: Annotated[int, Bounds(16, 512)] = 128


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

    size: Annotated[int, Bounds(64, 8192)] = 1024
    normal_map: bool = True
    polish: Annotated[int, Bounds(0, 20)] = 3
    polish_step: Annotated[float, Bounds(0, 1)] = 0.7
    input_weight: Annotated[float, Bounds(0, 10_000)] = 20.0


@dataclass(frozen=True)
class RefineSettings:
    """The paper's loop (3.4): splat renders are noised and denoised again by the generator.

    Attributes:
        rounds: How often; 0 switches it off.
        interval: Iterations of the fit before each round (500 in the paper).
        noise: Share of the noise ladder that the renders are lifted to, in (0, 1]: the paper's σ_r, which it does not
            state. 0: what suits the generator.
        steps: Evaluations of the network in each round: denoising steps, or, for `mini`, restarts that are averaged.
        raise_deg: Each round also denoises a second orbit, raised by so many degrees, and the fit continues towards
            both; 0 for none. Only for generators that take an elevation (`sv3d_p`). Beyond the paper: views from above
            show what a single ring cannot see, at twice the network calls.
    """

    rounds: Annotated[int, Bounds(0, 100)] = 2
    interval: Annotated[int, Bounds(1, 100_000)] = 500
    noise: Annotated[float, Bounds(0, 1)] = 0.0
    steps: Annotated[int, Bounds(1, 1000)] = 10
    raise_deg: Annotated[float, Bounds(-80, 80)] = 0.0


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
    size: Annotated[int, Bounds(64, 4096, 16, zero=True)] = 0
    steps: Annotated[int, Bounds(0, 1000)] = 0
    memory: ImageMemory = "auto"


@dataclass(frozen=True)
class Sv3dSettings:
    """The orbit generated by Stable Video 3D (paper 3.1, with a public model in the place of the paper's).

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

    views: Annotated[int, Bounds(2, 64)] = 21
    size: Annotated[int, Bounds(64, 2048, 64)] = 576
    steps: Annotated[int, Bounds(1, 1000)] = 20
    guidance: Annotated[float, Bounds(0, 100)] = 2.5
    memory: Literal["auto", "24", "12", "8"] = "auto"
    compile: bool = False
    finetuned: str = ""


@dataclass(frozen=True)
class MiniSettings:
    """The orbit generated by our own small network.

    Attributes:
        views: K: 16, or only 8 or 4 of the ring, which the paper's Table 3 compares.
        steps: Denoising steps of the first orbit, four evaluations of the network each. It is trained to predict
            the conditional mean, and one step does; more leave grain (docs/lab/training-log.md).
    """

    views: Annotated[int, Bounds(4, 16)] = 16
    steps: Annotated[int, Bounds(1, 1000)] = 1


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


# What each preset changes. All keep the paper's losses; "paper" is the paper as far as public models allow, see
# docs/paper.md.
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
    "high": {"fit.ramp": 0.0},
    "paper": {
        "fit.size": 0,
        "fit.init": "ball",
        "fit.ramp": 0.0,
        "mesh.route": "density",
        "sv3d.views": 16,
        "sv3d.size": 512,
    },
}
# Provided views show one object exactly, and colours compared pixel by pixel then give a sharper result. Views that a
# network made disagree in detail: there the paper's perceptual loss is better.
PROVIDED_VIEWS_CHANGES: dict[str, object] = {
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
# More splats and iterations fit what such views disagree in: fewer came out as good (docs/lab/performance.md).
STANDARD_GENERATED_CHANGES: dict[str, object] = {
    "fit.iterations": 800,
    "fit.max_gaussians": 12000,
    "refine.interval": 330,
}

# Old name → new name. Old ones are accepted for one version, with a note.
RENAMED = {
    "fit.refine_every": "fit.densify_every",
    "mesh.behind": "mesh.occlusion_vote_weight",
    "refine.every": "refine.interval",
}


def preset_settings(preset: Preset, provided_views: bool = False) -> Settings:
    """The settings of a preset, for provided views or for generated ones; "paper" is the same for both."""
    changes = dict(PRESET_CHANGES[preset])
    if preset != "paper":
        changes |= PROVIDED_VIEWS_CHANGES if provided_views else GENERATED_VIEWS_CHANGES
    if preset == "standard" and not provided_views:
        changes |= STANDARD_GENERATED_CHANGES
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
            raise InputError(f"{text} has no '='.", "Write section.name=value, for example fit.iterations=800.")
        settings = changed(settings, name.strip(), value.strip())
    return settings


def changed(settings: Settings, name: str, value: object) -> Settings:
    """Settings with one field, `section.name`, replaced; texts are converted to the field's type.

    Raises:
        InputError: Unknown name, or a value of the wrong type.
    """
    name = RENAMED.get(name, name)
    section_name, _, field_name = name.partition(".")
    section = getattr(settings, section_name, None)
    if section is None or field_name not in {f.name for f in dataclasses.fields(section)}:
        raise InputError(f"There is no setting {name}.", _suggestion(settings, name))
    hint = get_type_hints(type(section), include_extras=True)[field_name]
    section = dataclasses.replace(section, **{field_name: _converted(name, hint, value)})
    return dataclasses.replace(settings, **{section_name: section})


def renaming_note(names: Iterable[str]) -> tuple[str, ...]:
    """A sentence for the user where these names of settings include old ones; nothing otherwise."""
    pairs = ", ".join(f"{name} is {RENAMED[name]} now" for name in sorted(set(names) & set(RENAMED)))
    return (f"Settings were renamed: {pairs}. The next version does not accept the old names.",) if pairs else ()


def override_notes(assignments: Iterable[str]) -> tuple[str, ...]:
    """`renaming_note` of "section.name=value" texts."""
    return renaming_note(text.partition("=")[0].strip() for text in assignments)


def setting_names(data: object) -> list[str]:
    """The names, "section.name", in settings as JSON has them; none where that is damaged."""
    sections = data.items() if isinstance(data, dict) else ()
    return [f"{section}.{name}" for section, values in sections if isinstance(values, dict) for name in values]


def _suggestion(settings: Settings, name: str) -> str:
    """What may have been meant by a name that does not exist."""
    known = setting_names(settings.to_json())
    same_field = [k for k in known if k.partition(".")[2] == name.rpartition(".")[2]]
    near = same_field or difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Settings belong to one of: {', '.join(s.name for s in dataclasses.fields(settings))}."


def settings_from_json(data: object, settings: Settings | None = None) -> Settings:
    """The inverse of `Settings.to_json`; fields that are absent keep those of `settings`, by default the defaults.

    Raises:
        InputError: Unknown name, or a value of the wrong type or out of its bounds.
    """
    settings = settings or Settings()
    for section, values in _items("settings", data):
        for name, value in _items(str(section), values):
            settings = changed(settings, f"{section}.{name}", value)
    return settings


def _items(name: str, data: object) -> Iterable[tuple[object, object]]:
    if not isinstance(data, dict):
        raise InputError(f"{name} cannot be {shown(data)}.", "Give an object of names and values.")
    return data.items()


def allowed(hint: Any) -> str:
    """What a field of this type may be, in words: "a whole number, 1 to 8", "true or false", "hull or ball"."""
    kind, bounds = _kind(hint)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    word = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    return word if bounds is None else f"{word}, {bounds}"


def _kind(hint: Any) -> tuple[Any, Bounds | None]:
    """The type of a field, and its bounds if it has any."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint, None)


def _converted(name: str, hint: Any, value: object) -> object:
    kind, bounds = _kind(hint)
    try:
        if get_origin(kind) is Literal:
            return {choice: choice for choice in get_args(kind)}[value]
        if kind is bool:
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
        if kind is str and isinstance(value, str):
            return value
        number = {int: whole, float: finite}[kind](value)
        if bounds is None or bounds.hold(number):
            return number
        raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be {shown(value)}.", f"Use {allowed(hint)}.") from error


def whole(value: object) -> int:
    """A whole number, also as text or written as 3.0, as spreadsheets do.

    Raises:
        TypeError, ValueError: It is none.
    """
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    number = finite(value)
    if not number.is_integer():
        raise ValueError(f"{number} is not whole")
    return int(number)


def finite(value: object) -> float:
    """A finite number, also as text.

    Raises:
        TypeError, ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{type(value).__name__} is not a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("too large") from error
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def shown(value: object) -> str:
    """A wrong value in a sentence, cut where it is long."""
    text = str(value)
    return f"{text[:40]} …" if len(text) > 40 else text or "empty"
