"""`bpy.ops.im3d.generate`: one job. Every input is a property, so that scripts can give it; only `invoke` looks at the
panel."""

from __future__ import annotations

from typing import Any

import bpy

from ...backend.im3d.shared.names import default_name
from ..client.queue import QueuedJob
from ..core.job_request import (
    GENERATORS,
    MAX_HEIGHT,
    MAX_SEED,
    PRESETS,
    VIEWS_GENERATOR,
    RequestError,
    make_request,
    random_seed,
)
from ..core.placement import Placement
from ..scene.assets import THIS_FILE
from ..scene.pictures import PictureError, image_file
from ..state import open_file, session
from ..state.preferences import inputs_folder

SOURCES = {"prompt", "image", "views"}
SKIP: set[str] = {"SKIP_SAVE"}
ALL_GENERATORS = [*GENERATORS, (VIEWS_GENERATOR, "Your Views", "The views that you bring")]


class IM3D_OT_generate(bpy.types.Operator):
    """Make a textured object from a prompt, an image or orbit views"""

    bl_idname = "im3d.generate"
    bl_label = "Generate 3D Object"

    prompt: bpy.props.StringProperty(name="Prompt", description="One object, in a sentence", options=SKIP)
    image: bpy.props.StringProperty(
        name="Image", description="A picture file, or the name of an image in this .blend", options=SKIP
    )
    views: bpy.props.StringProperty(
        name="Orbit Views", description="A folder with pictures all around the object, or a turntable video",
        options=SKIP,
    )  # fmt: skip
    mask: bpy.props.StringProperty(
        name="Mask", description="Your own mask of the image: white is the object", options=SKIP
    )
    name: bpy.props.StringProperty(
        name="Name", description="Name of the object; empty takes the prompt's or the file's", options=SKIP
    )
    generator: bpy.props.EnumProperty(
        name="Generator", description="What generates the object's views", items=ALL_GENERATORS, options=SKIP
    )
    preset: bpy.props.EnumProperty(
        name="Preset", description="Quality against time", items=PRESETS, default="standard", options=SKIP
    )
    seed: bpy.props.IntProperty(
        name="Seed", description="Seed of every random choice; -1 picks a random one", default=0, min=-1, max=MAX_SEED,
        options=SKIP,
    )  # fmt: skip
    height: bpy.props.FloatProperty(
        name="Height (m)", description="Height of the object in metres", default=1.0, max=MAX_HEIGHT, options=SKIP
    )
    faces: bpy.props.IntProperty(
        name="Faces", description="Triangles of the mesh, at most; 0 keeps the preset's", min=0, options=SKIP
    )
    texture_size: bpy.props.IntProperty(
        name="Texture", description="Side of the square texture in pixels; 0 keeps the preset's", min=0, options=SKIP
    )
    recenter: bpy.props.BoolProperty(
        name="Cut Out and Centre", description="Off when the picture is framed as a view already", default=True,
        options=SKIP,
    )  # fmt: skip
    elevation: bpy.props.FloatProperty(
        name="Elevation (°)", description="Elevation of the views in degrees; estimated unless it is given",
        options=SKIP,
    )  # fmt: skip
    settings: bpy.props.StringProperty(
        name="Settings", description="More of the backend's settings: section.name=value, parted by spaces",
        options=SKIP,
    )  # fmt: skip
    location: bpy.props.FloatVectorProperty(
        name="Location", description="Where the centre of the object's base goes", subtype="TRANSLATION", options=SKIP
    )
    step_aside: bpy.props.BoolProperty(
        name="Step Aside",
        description="Place the object beside what stands at its location already, instead of into it",
        default=True,
        options=SKIP,
    )
    collection: bpy.props.StringProperty(
        name="Collection", description="Collection that receives the object; empty takes the active one", options=SKIP
    )
    arrive: bpy.props.BoolProperty(
        name="Import", description="Import the object when it is finished", default=True, options=SKIP
    )
    select: bpy.props.BoolProperty(
        name="Select", description="Make the new object the selected one", default=True, options=SKIP
    )
    library: bpy.props.StringProperty(
        name="Library",
        description="Asset library that receives the object; LOCAL marks it in this file only, empty does neither",
        options=SKIP,
    )
    lods: bpy.props.BoolProperty(
        name="Levels of Detail", description="Add copies with 50 % and 25 % of the triangles", options=SKIP
    )
    splats: bpy.props.BoolProperty(name="Point Cloud", description="Add the splats as coloured points", options=SKIP)
    wait: bpy.props.BoolProperty(
        name="Wait", description="Return when the object is there; always so without a window", options=SKIP
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        settings = context.scene.im3d
        if not settings.lock_seed and not self.properties.is_property_set("seed"):
            settings.seed = random_seed()
        given = {name for name in self.properties.keys() if self.properties.is_property_set(name)}  # noqa: SIM118
        inputs = panel_inputs(context)
        if given & SOURCES:
            given |= {*SOURCES, "mask"}  # the panel's mask is its own image's
            inputs["name"] = settings.name
        if self.views:
            given.add("generator")  # the panel's is for prompts and pictures
        for name, value in inputs.items():
            if name not in given:
                setattr(self, name, value)
        return self.execute(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            job = session.submit(context, self._request(context), self._placement(context))
        except (RequestError, PictureError, OSError) as error:  # OSError: no job folder can be made
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        if not (self.wait or bpy.app.background):
            return {"FINISHED"}
        session.wait_for(context, [job.id], print_progress)
        if job.state != "done":
            self.report({"ERROR"}, failure_text(job))
            return {"CANCELLED"}
        return {"FINISHED"}

    def _request(self, context: bpy.types.Context) -> dict[str, Any]:
        return make_request(
            prompt=self.prompt,
            image=image_file(self.image, inputs_folder(context)) if self.image else "",
            views=bpy.path.abspath(self.views),
            mask=image_file(self.mask, inputs_folder(context)) if self.mask else "",
            name=self.name,
            generator=self.generator,
            preset=self.preset,
            seed=None if self.seed < 0 else self.seed,
            height=self.height,
            faces=self.faces,
            texture_size=self.texture_size,
            recenter=self.recenter,
            elevation=self.elevation if self.properties.is_property_set("elevation") else None,
            settings=self.settings,
        )

    def _placement(self, context: bpy.types.Context) -> Placement:
        x, y, z = self.location
        return Placement(
            blend=bpy.data.filepath,
            document=open_file.document(),
            scene=context.scene.name,
            collection=self.collection or context.collection.name,
            make_collection=bool(self.collection),
            location=(x, y, z),
            step_aside=self.step_aside,
            arrive=self.arrive,
            select=self.select,
            library=self.library,
            lods=self.lods,
            splats=self.splats,
        )


def panel_inputs(context: bpy.types.Context) -> dict[str, Any]:
    """The operator's properties as the panel has them; what the chosen source does not use is left out."""
    settings = context.scene.im3d
    inputs: dict[str, Any] = {
        name: getattr(settings, name) for name in ("name", "preset", "seed", "height", "faces", "lods", "splats")
    }
    inputs["texture_size"] = int(settings.texture_size)
    if settings.place == "CURSOR":
        inputs["location"] = context.scene.cursor.location
    if settings.as_asset:
        inputs["library"] = settings.library or THIS_FILE
    if settings.know_elevation and settings.source != "PROMPT":
        inputs["elevation"] = settings.elevation
    if settings.source == "VIEWS":
        return {**inputs, "views": settings.views}
    inputs["generator"] = settings.generator
    if settings.source == "PROMPT":
        return {**inputs, "prompt": settings.prompt}
    if settings.image is None:
        return {**inputs, "image": ""}
    inputs["name"] = settings.name or default_name("", settings.image.name)
    if settings.cutout is not None:
        inputs["image"] = settings.cutout.name
    else:
        inputs |= {"image": settings.image.name, "mask": settings.mask.name if settings.mask else ""}
    return {**inputs, "recenter": settings.recenter}


def failure_text(job: QueuedJob) -> str:
    """Why a job did not end as wished, one or two sentences."""
    if job.failure is None:
        return "The job was cancelled."
    return f"{job.failure.message} {job.failure.hint}".strip()


def print_progress(job: QueuedJob) -> None:
    """For Blender without a window: a line whenever something changed."""
    if job.state == "running":
        print(f"im3d: {job.request['name']}: {job.stage} {job.step}/{job.steps}, {job.fraction:.0%}", flush=True)
    elif job.state != "waiting":
        print(f"im3d: {job.request['name']}: {job.state}", flush=True)


CLASSES = [IM3D_OT_generate]
