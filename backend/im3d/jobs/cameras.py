"""The cameras of a job's views: what the generator left open is estimated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from im3d.core.images import OrbitViews
from im3d.core.progress import Progress
from im3d.generators.base import ElevationSource, ViewFacts
from im3d.splats.elevation_search import photometric_score, refined_elevation
from im3d.views.elevation import estimate_orbit

# Below this confidence the elevation is reported as a guess.
LOW_CONFIDENCE = 0.5
# None: nobody measured how far a network's prediction can be trusted.
_CONFIDENCE: dict[ElevationSource, float | None] = {"given": 1.0, "network": None, "prior": 0.0}


@dataclass(frozen=True)
class LocatedViews:
    """Views with complete cameras.

    Attributes:
        views: The pictures as they were, and their orbit with elevation, direction and distance.
        notes: For the result: elevation_method, elevation_confidence (None: not measured), direction (+1: as
            `im3d.core.orbit` says, −1: the azimuths were negated), direction_confidence.
        warnings: For the user, a sentence each.
    """

    views: OrbitViews
    notes: dict[str, Any]
    warnings: tuple[str, ...]


def locate_cameras(
    views: OrbitViews, facts: ViewFacts, elevation_deg: float | None, provided: bool, progress: Progress
) -> LocatedViews:
    """Completes the orbit of views (the paper's own way is a network on DINO features, 3.3).

    Args:
        views: As their generator made them.
        facts: What the generator knows of them.
        elevation_deg: Given by the user, in degrees; overrides everything else.
        provided: Whether they are the user's own. Only then may they contradict each other, and an estimated elevation
            is worth refining by a fit, which takes seconds.
        progress: Of that fit.

    Raises:
        InputError: The views do not show one object from any cameras.
    """
    if elevation_deg is not None:
        views = OrbitViews(views.rgba, dataclasses.replace(views.orbit, elevation_deg=elevation_deg))
    unknown = views.orbit.elevation_deg is None
    estimate = estimate_orbit(views, facts.radius_known, facts.direction_known, photometric_score)
    method: str = "given" if elevation_deg is not None else facts.elevation_source
    confidence = 1.0 if elevation_deg is not None else _CONFIDENCE[facts.elevation_source]
    if unknown:
        method, confidence = estimate.method, round(estimate.elevation_confidence, 3)
    warnings = estimate.warnings if provided else ()
    orbit = estimate.orbit
    if method == "prior" and not unknown:
        warnings += (
            f"No elevation was given, and the generator needs one: {orbit.elevation_deg:g}° was assumed. If the result "
            "leans or bulges, set the camera elevation.",
        )
    elif confidence is not None and confidence < LOW_CONFIDENCE:
        warnings += (
            f"The elevation of the views, {orbit.elevation_deg:g}°, is a guess: the object looks much the same from "
            "others. If the result leans or bulges, set the camera elevation.",
        )
    elif provided and unknown:
        refined = round(refined_elevation(OrbitViews(views.rgba, orbit), progress=progress), 2)
        orbit = dataclasses.replace(orbit, elevation_deg=refined)
    notes = {
        "elevation_method": method,
        "elevation_confidence": confidence,
        "direction": estimate.direction,
        "direction_confidence": round(estimate.direction_confidence, 3),
    }
    return LocatedViews(OrbitViews(views.rgba, orbit), notes, warnings)
