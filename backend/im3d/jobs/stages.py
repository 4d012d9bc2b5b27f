"""The steps of a job: each reads the results of earlier steps from the job folder and leaves its own there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from im3d.blender import find_blender, save_blend
from im3d.core.images import LONGEST_SIDE, OrbitViews, read_image, write_png, write_views
from im3d.core.memory import give_back_gpu_memory
from im3d.core.orbit import Orbit
from im3d.core.progress import Progress, part
from im3d.core.storage import make_folder, write_json
from im3d.errors import InputError
from im3d.generators.choose import generators_with_elevation
from im3d.jobs.cameras import locate_cameras
from im3d.jobs.context import JobContext
from im3d.jobs.job import stage_seed
from im3d.jobs.preview import make_preview
from im3d.jobs.result import result_of
from im3d.mesh.build import Surface, TexturedMesh, build_surface, texture_surface
from im3d.mesh.gltf import write_glb
from im3d.mesh.surface import TriangleMesh, mesh_stats
from im3d.shared.names import MAX_ELEVATION_DEG
from im3d.splats.losses.perceptual import perceptual_name
from im3d.splats.ply import save_ply
from im3d.splats.render import render
from im3d.splats.turntable import write_turntable
from im3d.views.framing import centring_crop, whole_picture
from im3d.views.masks import isolate, read_mask
from im3d.views.text_to_image import generate_picture, motion_warning


class Stages(JobContext):
    """The steps of one job; `im3d.pipeline` says in what order they run. Each receives the progress of its own work."""

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
            self.notes["image_model"] = self.image_model
        generator = self.generator
        if self.settings.refine.raise_deg and not generator.takes_elevation:
            able = " or ".join(generators_with_elevation())
            raise InputError(
                f"{generator.name} cannot render a raised orbit.", f"Leave refine.raise_deg out, or use {able}."
            )
        if self.request.preset == "paper":
            self._warn_of_substitutes()
        self.notes.update(
            generator=generator.name,
            generator_reason=self.choice.reason,
            can_refine=generator.can_refine,
            input_frame=generator.input_frame,
            network_calls=0,
        )
        progress(1, 1)

    def _warn_of_substitutes(self) -> None:
        """The paper's networks that are not installed, and what does their work instead."""
        if self.settings.fit.lpips > 0 and perceptual_name() != "lpips-vgg16":
            self.warn(
                "The paper's perceptual loss compares features of VGG16, which is not installed: those of "
                "EfficientNet-Lite0 are used instead, and the result is not the paper's."
            )
        if self.segment is None:
            self.warn(
                "The paper takes the masks of the views from IS-Net, which is not installed: they come from the "
                "generator or from a plain background instead."
            )

    def make_picture(self, progress: Progress) -> None:
        """The picture that the prompt describes, by a text-to-image model."""
        request, model = self.request, self.notes["image_model"]
        seed = stage_seed(request.seed, "image")
        picture = generate_picture(request.prompt, model, self.settings.image, seed, self.device, progress)
        write_png(self.job.folder / "input.png", picture)
        self.warn(*filter(None, [motion_warning(request.prompt)]))

    def make_subject(self, progress: Progress) -> None:
        """The object cut out of the picture and framed as the generator expects."""
        if not self.views_provided:
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
        """The generator's views, with whatever their cameras left open estimated from them."""
        # Provided views are read at once; what takes time is to find their cameras.
        generating = 0.2 if self.views_provided else 0.9
        seed = stage_seed(self.request.seed, "orbit")
        views = self.generator.generate(self.subject, seed, part(progress, 0.0, generating))
        facts = self.generator.facts()
        if facts.mask_method is not None:
            self.notes["mask"] = facts.mask_method
        self.warn(*facts.warnings)
        try:
            located = locate_cameras(
                views, facts, self.request.elevation_deg, self.views_provided, part(progress, 0.5, 1.0)
            )
        except InputError as error:
            if self.views_provided:
                raise
            raise InputError(
                f"The views that {self.generator.name} made do not show one object.",
                "Try another seed, or a picture that shows the object more clearly.",
            ) from error
        self.notes.update(network_calls=self.generator.network_calls, **located.notes)
        self.warn(*located.warnings)
        write_views(self.job.folder / "views", located.views)

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
            write_views(folder / "raised", self._refined(raised, f"refine {number} raised", half))
            progress = part(progress, 0.5, 1.0)
        # Last, because its orbit.json makes the round complete.
        write_views(folder, self._refined(orbit, f"refine {number}", progress))
        self.notes["network_calls"] += self.generator.network_calls - calls
        self.splat_fit.retarget(self.views, *self.raised_views)

    def _raised(self, orbit: Orbit) -> Orbit | None:
        """The second orbit of a round, where `refine.raise_deg` asks for one."""
        if not self.settings.refine.raise_deg or orbit.elevation_deg is None:
            return None
        elevation = orbit.elevation_deg + self.settings.refine.raise_deg
        return dataclasses.replace(
            orbit, elevation_deg=float(np.clip(elevation, -MAX_ELEVATION_DEG, MAX_ELEVATION_DEG))
        )

    def _refined(self, orbit: Orbit, purpose: str, progress: Progress) -> OrbitViews:
        """Renders of the splats on `orbit`, noised and denoised by the generator."""
        subject = self.subject
        assert subject is not None  # provided views are not refined
        with torch.no_grad():
            rendered = render(self.splat_fit.gaussians(), orbit.cameras(self.generator.size), self.rasterizer)
        alpha = rendered.alpha[..., None].clamp(1e-4, 1)
        rgba = torch.cat([(rendered.rgb / alpha).clamp(0, 1), rendered.alpha[..., None]], dim=-1).cpu().numpy()
        settings, seed = self.settings.refine, stage_seed(self.request.seed, purpose)
        noise = settings.noise or self.generator.refine_noise
        views = self.generator.refine(subject, OrbitViews(rgba, orbit), noise, settings.steps, seed, progress)
        return OrbitViews(views.rgba, orbit)

    def finish_splats(self, progress: Progress) -> None:
        """Saves the splats that some view sees, and frees the generator and the fit, which are not used any more."""
        if "generator" in vars(self):  # a resumed job may never have needed it
            self.generator.release()
        save_ply(self.job.folder / "splats.ply", self.splat_fit.finished())
        if self.refined_folder is not None:
            write_views(self.job.folder / "refined", self.views)
        # The features of its targets may take gigabytes of the GPU, which the mesh and Blender can use.
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
        # Jobs of earlier versions did not note which view shows the input.
        input_view = self.notes.get("input_frame", None if self.views_provided else 0)
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
        gaussians, orbit = self.gaussians, self.views.orbit
        write_turntable(folder / "turntable.webp", gaussians, orbit)
        progress(2, 3)
        make_preview(self.job, gaussians, orbit, self.blender, self.warn)
        progress(3, 3)

    def save_blend(self, progress: Progress) -> None:
        """The .blend that was requested."""
        assert self.request.blend is not None
        save_blend(
            find_blender(self.blender), self.job.folder / "mesh.glb", self.request.name, Path(self.request.blend)
        )
        progress(1, 1)

    def finish(self) -> None:
        """Writes result.json and ends the job."""
        result = result_of(self.job, self.views.orbit.elevation_deg, self.machine)
        write_json(self.job.folder / "result.json", result)
        self.job.state.status = "done"
        self.job.save()
        self.job.clear_work()
