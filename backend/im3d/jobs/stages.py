"""The steps of a job: each reads the results of earlier steps from the job folder and leaves its own there.

What is expensive to load (the generator, the fit) is kept in memory from step to step and read from the folder again
only when a job is resumed; both ways the numbers are the same.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from im3d import __version__
from im3d.blender import find_blender, render_preview, save_blend
from im3d.core.devices import choose_device, device_name
from im3d.core.images import LONGEST_SIDE, OrbitViews, read_image, read_views, write_png, write_views
from im3d.core.memory import give_back_gpu_memory
from im3d.core.orbit import MAX_ELEVATION_DEG, Orbit
from im3d.core.progress import Progress, part
from im3d.core.storage import make_folder, write_json
from im3d.errors import Im3dError, InputError, ModelError
from im3d.generators.base import Generator, Subject
from im3d.generators.choose import Choice, build_generator, choose_generator
from im3d.generators.files import FilesGenerator
from im3d.jobs.job import Job, stage_seed
from im3d.jobs.runner import write_preview
from im3d.mesh.build import Surface, TexturedMesh, build_surface, texture_surface
from im3d.mesh.gltf import write_glb
from im3d.mesh.surface import TriangleMesh, mesh_stats
from im3d.settings import RefineSettings
from im3d.splats.elevation_search import photometric_score, refined_elevation
from im3d.splats.fit import SplatFit
from im3d.splats.gaussians import Gaussians
from im3d.splats.losses.perceptual import load_perceptual
from im3d.splats.ply import load_ply, save_ply
from im3d.splats.render import Rasterizer, best_rasterizer, ready_rasterizer, render
from im3d.splats.turntable import write_turntable
from im3d.views.elevation import OrbitEstimate, estimate_orbit
from im3d.views.framing import centring_crop, whole_picture
from im3d.views.isnet import installed_isnet
from im3d.views.masks import Segment, isolate, read_mask
from im3d.views.text_to_image import choose_image_model, draw_picture, motion_warning

# Below this the elevation is reported as a guess.
LOW_CONFIDENCE = 0.5


class Stages:
    """The steps of one job.

    Args:
        job: The job.
        device: "auto", "cuda" or "cpu".
        blender: Blender executable, where bpy is not installed.
        tell: Receives each warning, those of a resumed job's earlier steps first.
    """

    def __init__(self, job: Job, device: str, blender: str | None, tell: Callable[[str], None]) -> None:
        self.job = job
        self.tell = tell
        self.request = job.request
        self.settings = job.request.settings
        self.device = choose_device(device)
        best_rasterizer(self.device)  # says at once when there is none
        self.blender = Path(blender) if blender else None
        for sentence in self.notes.get("warnings", []):
            tell(sentence)

    # ---------------------------------------------------------------- what the steps share

    @property
    def notes(self) -> dict[str, Any]:
        return self.job.state.notes

    @functools.cached_property
    def rasterizer(self) -> Rasterizer:
        """What draws the splats; compiled at the first use."""
        return ready_rasterizer(self.device)

    @functools.cached_property
    def generator(self) -> Generator:
        """What makes the views.

        Raises:
            InputError: The generator does not suit the source.
            ModelError: Its weights are not installed.
        """
        request = self.request
        if request.views is not None:
            if request.generator not in ("auto", "files"):
                raise InputError(f"{request.generator} makes views; yours are given.", "Choose the generator auto.")
            return FilesGenerator(Path(request.views), request.elevation_deg, segment=self.segment)
        if request.generator == "files":
            raise InputError(
                "The generator files needs the views of an orbit.", "Give them, or choose another generator."
            )
        return build_generator(self.choice.name, self.settings, self.device, request.elevation_deg, self.segment)

    @functools.cached_property
    def choice(self) -> Choice:
        """The generator of a picture; a resumed job keeps its own, whatever has been installed since."""
        if "generator" in self.notes:
            return Choice(self.notes["generator"], self.notes["generator_reason"])
        return choose_generator(self.request.generator, self.device, self.request.elevation_deg is not None)

    @functools.cached_property
    def segment(self) -> Segment | None:
        """IS-Net, where it is installed."""
        return installed_isnet(self.device)

    @property
    def refine_settings(self) -> RefineSettings:
        """The request's, without rounds where the generator cannot refine."""
        settings = self.settings.refine
        return settings if self.notes["can_refine"] else dataclasses.replace(settings, rounds=0)

    @property
    def views(self) -> OrbitViews:
        """The views the fit is to explain now: the generator's, or the last refined ones."""
        return read_views(self._refined_folder or self.job.folder / "views")

    @property
    def raised_views(self) -> list[OrbitViews]:
        """The second orbit of the last round, if there is one."""
        folder = self._refined_folder
        raised = folder / "raised" if folder else None
        return [read_views(raised)] if raised and raised.exists() else []

    @property
    def _refined_folder(self) -> Path | None:
        """Where the last complete round left its views."""
        rounds = [self.job.work / f"refine_{n}" for n in range(self.settings.refine.rounds, 0, -1)]
        return next((folder for folder in rounds if (folder / "orbit.json").exists()), None)

    @functools.cached_property
    def splat_fit(self) -> SplatFit:
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
        """What steps are done with here: device and versions."""
        versions = {"im3d": __version__, "python": platform.python_version(), "torch": torch.__version__}
        return {"device": device_name(self.device), **versions}

    def warn(self, *sentences: str) -> None:
        """Tells the user, and notes for the result, each sentence once."""
        known = self.notes.setdefault("warnings", [])
        for sentence in sentences:
            if sentence not in known:
                known.append(sentence)
                self.tell(sentence)

    # ---------------------------------------------------------------- the steps, in order

    def load(self, progress: Progress) -> None:
        """Reads and checks the input, so that a mistake costs a second and not a minute."""
        make_folder(self.job.work)
        elevation = self.request.elevation_deg
        if elevation is not None and abs(elevation) > MAX_ELEVATION_DEG:
            raise InputError(
                f"The elevation of {elevation:g}° is out of range.", f"Use one within ±{MAX_ELEVATION_DEG:g}°."
            )
        if self.request.image is not None:
            picture = read_image(Path(self.request.image), LONGEST_SIDE)
            if self.request.mask is not None:
                read_mask(Path(self.request.mask), picture.shape)
            write_png(self.job.folder / "input.png", picture)
        if self.request.only_prompt:
            self.notes["image_model"] = self._image_model()
        if self.settings.refine.raise_deg and self.generator.name != "sv3d_p":
            raise InputError(
                f"{self.generator.name} cannot draw a raised orbit.", "Leave refine.raise_deg out, or use sv3d_p."
            )
        self.notes.update(generator=self.generator.name, can_refine=self.generator.can_refine, network_calls=0)
        self.notes["generator_reason"] = self.choice.reason if self.request.views is None else ""
        progress(1, 1)

    def make_picture(self, progress: Progress) -> None:
        """Draws the picture that a sentence describes."""
        request, model = self.request, self.notes["image_model"]
        seed = stage_seed(request.seed, "image")
        picture = draw_picture(request.prompt, model, self.settings.image, seed, self.device, progress)
        write_png(self.job.folder / "input.png", picture)
        self.warn(*filter(None, [motion_warning(request.prompt)]))

    def make_subject(self, progress: Progress) -> None:
        """Cuts the object out of the picture and frames it as the generator expects."""
        if self.request.views is None:
            picture = read_image(self.job.folder / "input.png")
            mask = read_mask(Path(self.request.mask), picture.shape) if self.request.mask else None
            cut = isolate(picture, mask, self.segment)
            size, alpha = self.generator.size, cut.rgba[..., 3]
            centred = self.request.recenter
            crop = centring_crop(alpha, size, self.generator.framing) if centred else whole_picture(alpha.shape, size)
            write_png(self.job.folder / "subject.png", crop.apply(cut.rgba))
            self.notes.update(mask=cut.method, crop=dataclasses.asdict(crop))
            self.warn(*cut.warnings)
        progress(1, 1)

    def make_views(self, progress: Progress) -> None:
        """The generator's views, with whatever their orbit left open estimated from them."""
        # Views that are given are read at once; what takes time is to learn where they were taken from.
        drawn = 0.2 if self.request.views is not None else 0.9
        seed = stage_seed(self.request.seed, "orbit")
        views = self.generator.generate(self._subject(), seed, part(progress, 0.0, drawn))
        # Pictures do not tell a small near object from a large far one: a generator's distance is only a habit.
        radius_known, direction_known = False, True
        if isinstance(self.generator, FilesGenerator):
            brought = self.generator.brought
            radius_known, direction_known = brought.radius_known, brought.direction_known
            self.notes["mask"] = brought.mask_method
            self.warn(*brought.warnings)
        elif self.request.elevation_deg is not None:
            views = OrbitViews(views.rgba, dataclasses.replace(views.orbit, elevation_deg=self.request.elevation_deg))
        try:
            estimate = estimate_orbit(views, radius_known, direction_known, photometric_score)
        except InputError as error:
            if self.request.views is not None:
                raise
            raise InputError(
                f"The views that {self.generator.name} drew do not show one object.",
                "Try another seed, or a picture that shows the object more clearly.",
            ) from error
        if self.request.views is not None:
            self.warn(*estimate.warnings)
        method, confidence = self._elevation_source(views, estimate)
        self.notes.update(
            network_calls=self.generator.network_calls,
            elevation_method=method,
            elevation_confidence=confidence,
            direction=estimate.direction,
            direction_confidence=round(estimate.direction_confidence, 3),
        )
        if confidence is not None and confidence < LOW_CONFIDENCE:
            self.warn(
                f"The elevation of the views, {estimate.orbit.elevation_deg:g}°, is a guess: the object looks much the "
                "same from others. If the result leans or bulges, set the camera elevation."
            )
        found = OrbitViews(views.rgba, estimate.orbit)
        if (
            self.request.views is not None
            and views.orbit.elevation_deg is None
            and (confidence or 0.0) >= LOW_CONFIDENCE
        ):
            elevation = round(refined_elevation(found, progress=part(progress, 0.5, 1.0)), 2)
            found = OrbitViews(views.rgba, dataclasses.replace(estimate.orbit, elevation_deg=elevation))
        write_views(self.job.folder / "views", found)

    def fit(self, until: int, progress: Progress) -> None:
        """Fits the splats up to an iteration (paper 3.3)."""
        self.splat_fit.run(until, progress)
        self.splat_fit.save(self.job.work / "fit.pt")
        for name, used in (("rasterizer", self.rasterizer), ("perceptual", self.splat_fit.perceptual_name)):
            self.notes.setdefault(name, []).append(used)

    def refine(self, number: int, progress: Progress) -> None:
        """One round of the paper's loop (3.4): the splats' renders are noised and denoised, and become the views."""
        orbit, folder = self.views.orbit, self.job.work / f"refine_{number}"
        calls = self.generator.network_calls
        raised = self._raised(orbit)
        if raised is not None:
            half = part(progress, 0.0, 0.5)
            write_views(folder / "raised", self._redrawn(raised, f"refine {number} raised", half))
            progress = part(progress, 0.5, 1.0)
        # Last, because its orbit.json makes the round complete.
        write_views(folder, self._redrawn(orbit, f"refine {number}", progress))
        self.notes["network_calls"] += self.generator.network_calls - calls
        self.splat_fit.retarget(self.views, *self.raised_views)

    def _raised(self, orbit: Orbit) -> Orbit | None:
        """The second orbit of a round, where one was asked for."""
        if not self.settings.refine.raise_deg or orbit.elevation_deg is None:
            return None
        elevation = orbit.elevation_deg + self.settings.refine.raise_deg
        return dataclasses.replace(
            orbit, elevation_deg=float(np.clip(elevation, -MAX_ELEVATION_DEG, MAX_ELEVATION_DEG))
        )

    def _redrawn(self, orbit: Orbit, purpose: str, progress: Progress) -> OrbitViews:
        """The splats as `orbit` sees them, noised and denoised by the generator."""
        with torch.no_grad():
            rendered = render(self.splat_fit.gaussians(), orbit.cameras(self.generator.size), self.rasterizer)
        alpha = rendered.alpha[..., None].clamp(1e-4, 1)
        rgba = torch.cat([(rendered.rgb / alpha).clamp(0, 1), rendered.alpha[..., None]], dim=-1).cpu().numpy()
        settings, seed = self.settings.refine, stage_seed(self.request.seed, purpose)
        noise = settings.noise or self.generator.refine_noise
        renders = OrbitViews(rgba, orbit)
        views = self.generator.refine(self._subject(), renders, noise, settings.steps, seed, progress)
        return OrbitViews(views.rgba, orbit)

    def finish_splats(self, progress: Progress) -> None:
        """Saves the splats that some view sees, and lets go of the generator and the fit: they have done their part."""
        if "generator" in vars(self):  # a resumed job may never have needed it
            self.generator.release()
        save_ply(self.job.folder / "splats.ply", self.splat_fit.finished())
        if self._refined_folder is not None:
            write_views(self.job.folder / "refined", self.views)
        # Its targets' features may take gigabytes of the GPU, which the mesh and Blender can use.
        del self.splat_fit
        give_back_gpu_memory()
        progress(1, 1)

    def make_mesh(self, progress: Progress) -> None:
        """The surface (paper A.5, and better)."""
        surface = build_surface(self.gaussians, self.views, self.settings.mesh, progress, self.device)
        surface.save(self.job.work / "surface.npz")

    def make_texture(self, progress: Progress) -> None:
        """Atlas, colours and normal map."""
        surface = Surface.load(self.job.work / "surface.npz")
        input_view = 0 if self.request.views is None else None  # an orbit begins with it
        texture = self.settings.texture
        textured = texture_surface(surface, self.gaussians, self.views, texture, progress, input_view, self.device)
        textured.save(self.job.work / "textured.npz")

    def export(self, progress: Progress) -> None:
        """The GLB and its pictures."""
        folder, request = self.job.folder, self.request
        textured = TexturedMesh.load(self.job.work / "textured.npz")
        matrix = write_glb(folder / "mesh.glb", textured, request.name, request.height_m)
        self.notes["orbit_from_glb"] = matrix.tolist()
        self.notes["unseen"] = round(textured.unseen, 4)
        stats = dataclasses.asdict(mesh_stats(TriangleMesh(textured.mesh.vertices, textured.mesh.faces)))
        self.notes["mesh_stats"] = {**stats, "texture_size": self.settings.texture.size}
        progress(1, 3)
        write_turntable(folder / "turntable.webp", self.gaussians, self.views.orbit)
        progress(2, 3)
        self._write_preview()
        progress(3, 3)

    def save_blend(self, progress: Progress) -> None:
        """The .blend that was asked for."""
        assert self.request.blend is not None
        save_blend(
            find_blender(self.blender), self.job.folder / "mesh.glb", self.request.name, Path(self.request.blend)
        )
        progress(1, 1)

    def finish(self) -> None:
        """Writes result.json and ends the job."""
        job, notes = self.job, self.notes
        timings = {s: job.state.timings_s.get(s, 0.0) for s in
                   ("load", "image", "orbit", "fit", "refine", "mesh", "texture", "export")}  # fmt: skip
        # Steps that an earlier version finished have left no such notes.
        machines = list(notes.get("ran_with", {}).values()) or [self.machine]
        used = {name: _each([machine[name] for machine in machines]) for name in machines[0]}
        result = {
            "status": "done",
            "name": self.request.name,
            "prompt": self.request.prompt,
            "mesh": "mesh.glb",
            "splats": "splats.ply",
            "preview": "preview.png" if (job.folder / "preview.png").exists() else None,
            "turntable": "turntable.webp",
            "generator": notes["generator"],
            "generator_reason": notes.get("generator_reason", ""),
            "image_model": notes.get("image_model"),
            "preset": self.request.preset,
            "seed": self.request.seed,
            "height_m": self.request.height_m,
            "device": used.pop("device"),
            "rasterizer": _each(notes.get("rasterizer", "unknown")),
            "perceptual": _each(notes["perceptual"]),
            "versions": used,
            "ran_with": notes.get("ran_with", {}),
            "network_calls": notes["network_calls"],
            "iterations": self.settings.fit.iterations,
            "elevation_deg": self.views.orbit.elevation_deg,
            **{k: notes[k] for k in ("elevation_method", "elevation_confidence", "direction", "direction_confidence")},
            "mask": notes.get("mask"),
            "crop": notes.get("crop"),
            "orbit_from_glb": notes["orbit_from_glb"],
            "timings_s": {**timings, "total": round(sum(timings.values()), 3)},
            "mesh_stats": notes["mesh_stats"],
            "unseen": notes["unseen"],
            "peak_memory_mb": notes["peak_memory_mb"],
            "warnings": notes.get("warnings", []),
            "settings": self.settings.to_json(),
        }
        write_json(job.folder / "result.json", result)
        job.state.status = "done"
        job.save()
        job.clear_work()

    # ---------------------------------------------------------------- helpers

    def _image_model(self) -> str:
        """The model that draws the picture.

        Raises:
            ModelError: It is missing; where the generator is too, both are named, so that one visit gets both.
        """
        try:
            return choose_image_model(self.settings.image)
        except ModelError as image:
            try:
                self.generator  # noqa: B018 - asked for its errors
            except ModelError as generator:
                hint = f"{image.hint} {generator.hint}"
                remedy = f"{image.remedy} {generator.remedy.removeprefix('download ')}".strip()
                raise ModelError(f"{image.message} {generator.message}", hint, remedy) from image
            raise

    def _subject(self) -> Subject:
        """The framed picture; for views that the user brings, their first."""
        path = self.job.folder / "subject.png"
        if self.request.views is not None:
            assert isinstance(self.generator, FilesGenerator)
            return Subject(self.generator.brought.views.rgba[0], self.request.prompt)
        return Subject(read_image(path), self.request.prompt)

    def _elevation_source(self, views: OrbitViews, estimate: OrbitEstimate) -> tuple[str, float | None]:
        """Where the elevation of the views comes from, and how sure it is; None where nobody measured that."""
        if views.orbit.elevation_deg is None:
            return estimate.method, round(estimate.elevation_confidence, 3)
        if self.request.elevation_deg is not None or self.request.views is not None:
            return "given", 1.0
        # `sv3d_p` was told a usual elevation for want of the true one; `mini` predicts it with the views (paper 3.3).
        return ("prior", 0.0) if self.generator.name == "sv3d_p" else ("network", None)

    def _write_preview(self) -> None:
        """By Cycles where there is a Blender, otherwise from the splats; never a reason to fail the job."""
        path = self.job.folder / "preview.png"
        try:
            blender = find_blender(self.blender)
            try:
                render_preview(blender, self.job.folder / "mesh.glb", path)
                return
            except (Im3dError, OSError) as error:
                self.warn(f"The preview shows the splats, because Blender could not render the mesh: {error}")
        except InputError as error:
            self.job.log(f"preview from the splats: {error}")
        with torch.no_grad():
            gaussians = self.gaussians
            camera = self.views.orbit.cameras(512)[0]
            picture = render(gaussians, camera, "cpu").over(1.0)[0].clamp(0, 1).numpy()
        write_preview(path, np.dstack([picture, np.ones(picture.shape[:2], np.float32)]))


def _each(used: list[str] | str) -> str:
    """What was used, each once: one name unless a job was resumed elsewhere."""
    return used if isinstance(used, str) else " and ".join(dict.fromkeys(used))
