"""What the steps of a job share: its request, its notes, and what is expensive to load.

The generator and the fit are kept in memory from step to step, and read from the job folder again only when a job is
resumed; both ways the numbers are the same.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from im3d import __version__
from im3d.core.devices import choose_device, device_name
from im3d.core.images import OrbitViews, read_image, read_views
from im3d.errors import ModelError
from im3d.generators.base import Generator, GeneratorInputs, Subject
from im3d.generators.choose import Choice, build_generator, choose_generator
from im3d.jobs.job import Job, stage_seed
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.perceptual import load_perceptual
from im3d.splats.ply import load_ply
from im3d.splats.render import Rasterizer, best_rasterizer, ready_rasterizer
from im3d.views.isnet import installed_isnet
from im3d.views.masks import Segment
from im3d.views.text_to_image import choose_image_model


class JobContext:
    """The state of one job while it runs.

    Args:
        job: The job.
        device: "auto", "cuda" or "cpu".
        blender: Blender executable, where bpy is not installed.
        on_warning: Receives each warning, those of a resumed job's earlier steps first.

    Raises:
        InputError: There is no such device, or no rasteriser for it.
    """

    def __init__(self, job: Job, device: str, blender: str | None, on_warning: Callable[[str], None]) -> None:
        self.job = job
        self.request = job.request
        self.settings = job.request.settings
        self.device = choose_device(device)
        best_rasterizer(self.device)
        self.blender = Path(blender) if blender else None
        self._on_warning = on_warning
        for sentence in self.notes.get("warnings", []):
            on_warning(sentence)
        self.warn(*job.request.warnings)

    @property
    def notes(self) -> dict[str, Any]:
        """Facts that later steps and the result need; stored with the job's state."""
        return self.job.state.notes

    def warn(self, *sentences: str) -> None:
        """Passes each sentence on once, and notes it for the result."""
        known = self.notes.setdefault("warnings", [])
        for sentence in sentences:
            if sentence not in known:
                known.append(sentence)
                self._on_warning(sentence)

    # ---------------------------------------------------------------- from the picture to the views

    @property
    def views_provided(self) -> bool:
        """Whether the job starts from the user's own views."""
        return self.request.views is not None

    @functools.cached_property
    def choice(self) -> Choice:
        """The job's generator; a resumed job keeps its own, whatever has been installed since."""
        if "generator" in self.notes:
            return Choice(self.notes["generator"], self.notes["generator_reason"])
        request = self.request
        return choose_generator(request.generator, self.device, request.elevation_deg is not None, self.views_provided)

    @functools.cached_property
    def generator(self) -> Generator:
        """The source of the views.

        Raises:
            InputError: It does not suit what the job starts from.
            ModelError: Its weights are not installed.
        """
        request = self.request
        views = Path(request.views) if request.views is not None else None
        inputs = GeneratorInputs(self.device, self.settings, request.elevation_deg, self.segment, views)
        return build_generator(self.choice.name, inputs)

    @functools.cached_property
    def segment(self) -> Segment | None:
        """IS-Net (paper 3.3), where it is installed."""
        return installed_isnet(self.device)

    @property
    def image_model(self) -> str:
        """The text-to-image model for the prompt.

        Raises:
            ModelError: It is missing; where the generator is too, both are named, so that one download gets both.
        """
        try:
            return choose_image_model(self.settings.image)
        except ModelError as image:
            try:
                self.generator  # noqa: B018 - for its errors
            except ModelError as generator:
                hint = f"{image.hint} {generator.hint}"
                remedy = f"{image.remedy} {generator.remedy.removeprefix('download ')}".strip()
                raise ModelError(f"{image.message} {generator.message}", hint, remedy) from image
            raise

    @property
    def subject(self) -> Subject | None:
        """The framed picture; None where views are provided."""
        if self.views_provided:
            return None
        return Subject(read_image(self.job.folder / "subject.png"), self.request.prompt)

    # ---------------------------------------------------------------- the fit and the refinement rounds

    @property
    def views(self) -> OrbitViews:
        """The views that the fit has to explain now: the generator's, or those of the last refinement round."""
        return read_views(self.refined_folder or self.job.folder / "views")

    @property
    def raised_views(self) -> list[OrbitViews]:
        """The second orbit of the last refinement round, if there is one."""
        folder = self.refined_folder
        raised = folder / "raised" if folder else None
        return [read_views(raised)] if raised and raised.exists() else []

    @property
    def refined_folder(self) -> Path | None:
        """The folder with the views of the last complete refinement round."""
        rounds = [self.job.work / f"refine_{n}" for n in range(self.settings.refine.rounds, 0, -1)]
        return next((folder for folder in rounds if (folder / "orbit.json").exists()), None)

    @functools.cached_property
    def rasterizer(self) -> Rasterizer:
        """The best that works on the device; compiled at the first use."""
        return ready_rasterizer(self.device)

    @functools.cached_property
    def splat_fit(self) -> SplatFit:
        """The fit, as far as it has come."""
        perceptual = load_perceptual(self.device) if self.settings.fit.lpips > 0 else None
        seed = stage_seed(self.request.seed, "fit")
        fit = SplatFit(self.views, self.settings.fit, seed, self.device, self.rasterizer, perceptual)
        if (self.job.work / "fit.pt").exists():
            fit.load(self.job.work / "fit.pt")
            if self.raised_views:
                fit.retarget(self.views, *self.raised_views)
        return fit

    @property
    def gaussians(self) -> Gaussians:
        """The finished splats, on the CPU."""
        return load_ply(self.job.folder / "splats.ply")

    @functools.cached_property
    def machine(self) -> dict[str, str]:
        """Device and versions of this process, noted with each step, since a job may be resumed elsewhere."""
        versions = {"im3d": __version__, "python": platform.python_version(), "torch": torch.__version__}
        return {"device": device_name(self.device), **versions}
