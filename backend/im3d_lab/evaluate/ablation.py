"""The paper's ablations (Table 2, Table 3, Figure 4), mesh routes and restarts, as lists of variants of one plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from im3d.errors import InputError
from im3d.settings import FitSettings
from im3d_lab.evaluate.run import GIVEN_VIEWS, Plan

Ablation = Literal["losses", "frames", "representation", "iterations", "noise"]

# The product compares given views by colour alone; what imitates or compares generators must say the paper's weights.
_PAPER = FitSettings()
PAPER_LOSSES = tuple(f"fit.{name}={getattr(_PAPER, name)}" for name in ("lpips", "ms_ssim", "mask", "rgb"))
# Shares of the noise ladder about the generators' defaults. SV3D's σ are 1.2, 2.3, 3.9, 6.6, 10 and 40 there.
RESTARTS = (0.29, 0.335, 0.375, 0.42, 0.46, 0.6)


@dataclass(frozen=True)
class Variant:
    """One row of an ablation table.

    Attributes:
        name: Short, for folders.
        title: For tables.
        plan: What is run.
    """

    name: str
    title: str
    plan: Plan


def variants(ablation: Ablation | None, plan: Plan) -> list[Variant]:
    """The plans to run; without an ablation, the plan itself.

    Raises:
        InputError: The ablation makes no sense for the plan's source.
    """
    if ablation is None:
        return [Variant("run", plan.source, plan)]
    if ablation == "losses":
        return [
            _set(plan, "full", "all losses of the paper", *PAPER_LOSSES),
            _set(plan, "no-lpips", "without LPIPS", *PAPER_LOSSES, "fit.lpips=0"),
            # The colour loss takes over LPIPS's weight, as in the paper's "replace LPIPS by RGB".
            _set(plan, "rgb", "RGB instead of LPIPS", *PAPER_LOSSES, "fit.lpips=0", "fit.rgb=10"),
            _set(plan, "no-ms-ssim", "without MS-SSIM", *PAPER_LOSSES, "fit.ms_ssim=0"),
            _set(plan, "no-mask", "without mask loss", *PAPER_LOSSES, "fit.mask=0"),
        ]
    if ablation == "frames":
        if plan.source == "mini":
            # The truth keeps its 16 views, so that every row is compared with the same.
            return [_set(plan, f"{k}-frames", f"{k} views", f"mini.views={k}") for k in (16, 8, 4)]
        if plan.source not in GIVEN_VIEWS:
            raise InputError(
                f"{plan.source} makes the views that it was trained with.",
                f"Use --source {' or '.join(GIVEN_VIEWS)} or mini.",
            )
        return [Variant(f"{k}-frames", f"{k} views", dataclasses.replace(plan, views=k)) for k in (16, 8, 4)]
    if ablation == "representation":
        return [
            _set(plan, "fusion", "mesh by depth fusion", "mesh.route=fusion"),
            _set(plan, "density", "mesh by marching cubes on the density", "mesh.route=density"),
            dataclasses.replace(
                _set(plan, "field", "splats by the paper's losses, and a radiance field", *PAPER_LOSSES),
                plan=dataclasses.replace(plan, settings=(*plan.settings, *PAPER_LOSSES), radiance_field=True),
            ),
        ]
    if plan.source in GIVEN_VIEWS:
        raise InputError("Given views cannot be refined.", "Use --source with a generator.")
    rounds = [_set(plan, f"{n}-rounds", f"{n} refinement rounds", f"refine.rounds={n}") for n in (0, 1, 2)]
    if ablation == "iterations":
        return rounds
    # The paper gives no level for its restarts (3.4). Without any round stands for what they must beat.
    noises = [_set(plan, f"noise-{n:g}", f"restarts at {n:g} of the noise", f"refine.noise={n:g}") for n in RESTARTS]
    return [rounds[0], *noises]


def _set(plan: Plan, name: str, title: str, *assignments: str) -> Variant:
    return Variant(name, title, dataclasses.replace(plan, settings=(*plan.settings, *assignments)))
