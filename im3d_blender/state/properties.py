"""What the panel shows and edits: inputs saved with the scene, and the session's snapshot of the jobs folder."""

from __future__ import annotations

from typing import Any

import bpy

from ...backend.im3d.shared.names import MAX_ELEVATION_DEG
from ..core import finished_jobs
from ..core.job_request import GENERATORS, MAX_SEED, PRESETS
from . import events, thumbnails
from .preferences import get_preferences, jobs_folder

SOURCES = [
    ("PROMPT", "Prompt", "Start from a sentence"),
    ("IMAGE", "Image", "Start from one picture of the object"),
    ("VIEWS", "Orbit", "Start from pictures taken all around the object, or from a turntable video"),
]
PLACES = [
    ("CURSOR", "3D Cursor", "The centre of the object's base goes to the 3D cursor"),
    ("ORIGIN", "Origin", "The centre of the object's base goes to the world's origin"),
]
TEXTURE_SIZES = [(str(size), f"{size} px", "Side of the square texture") for size in (512, 1024, 2048, 4096)]


def _image_chosen(settings: IM3D_PG_scene, context: bpy.types.Context) -> None:
    # The panel shows the preview; while it is drawn no data-block may be changed.
    settings.cutout = None
    if settings.image is not None:
        settings.image.preview_ensure()
        thumbnails.stand_upright(settings.image)


def _mask_chosen(settings: IM3D_PG_scene, context: bpy.types.Context) -> None:
    settings.cutout = None


class IM3D_PG_scene(bpy.types.PropertyGroup):
    """Scene.im3d: the inputs of the next job."""

    source: bpy.props.EnumProperty(
        name="Source", description="What the object is made from", items=SOURCES, default="IMAGE"
    )
    prompt: bpy.props.StringProperty(
        name="Prompt", description="One object, for example: a wooden chest with iron bands"
    )
    image: bpy.props.PointerProperty(
        name="Image", description="A picture of the whole object",
        type=bpy.types.Image, update=_image_chosen,
    )  # fmt: skip
    mask: bpy.props.PointerProperty(
        name="Mask", description="Your own mask of the image, as large as it: white is the object",
        type=bpy.types.Image, update=_mask_chosen,
    )  # fmt: skip
    # The image without its background, shown and used in its place. Choosing another image or mask drops it.
    cutout: bpy.props.PointerProperty(type=bpy.types.Image)
    views: bpy.props.StringProperty(
        name="Orbit Views",
        description="A folder with pictures from all around the object, any picture in it, or a turntable video",
        subtype="FILE_PATH",
    )
    name: bpy.props.StringProperty(
        name="Name", description="Name of the object; empty takes the prompt's or the file's"
    )
    generator: bpy.props.EnumProperty(
        name="Generator", description="What generates the object's views", items=GENERATORS
    )
    preset: bpy.props.EnumProperty(name="Preset", description="Quality against time", items=PRESETS, default="standard")
    seed: bpy.props.IntProperty(
        name="Seed", description="Another seed gives another object, the same seed the same one", min=0, max=MAX_SEED
    )
    lock_seed: bpy.props.BoolProperty(
        name="Keep Seed", description="Keep the seed; otherwise each new job picks a random one", default=False
    )
    height: bpy.props.FloatProperty(
        name="Height (m)",
        description="Height of the object in metres, whatever unit the scene shows",
        default=1.0,
        min=0.001,
        max=1000.0,
        precision=3,
    )
    show_details: bpy.props.BoolProperty()
    faces: bpy.props.IntProperty(
        name="Faces", description="Triangles of the mesh, at most", default=20000, min=100, max=1_000_000
    )
    texture_size: bpy.props.EnumProperty(
        name="Texture", description="Side of the square texture in pixels", items=TEXTURE_SIZES, default="1024"
    )
    recenter: bpy.props.BoolProperty(
        name="Cut Out and Centre",
        description="Cut the object out of the picture and centre it; off when the picture is framed as a view already",
        default=True,
    )
    know_elevation: bpy.props.BoolProperty(
        name="Set Camera Elevation", description="Enter the camera's angle instead of estimating it"
    )
    elevation: bpy.props.FloatProperty(
        name="Elevation (°)",
        description="Angle in degrees from which the camera looked down at the object",
        min=-MAX_ELEVATION_DEG,
        max=MAX_ELEVATION_DEG,
    )
    place: bpy.props.EnumProperty(name="Place At", description="Where a new object stands", items=PLACES)
    as_asset: bpy.props.BoolProperty(
        name="Mark as Asset", description="Make the object an asset, with its picture, prompt, seed and licence"
    )
    library: bpy.props.StringProperty(
        name="Library", description="Asset library that receives the object; empty marks it in this file only"
    )
    lods: bpy.props.BoolProperty(
        name="Levels of Detail",
        description="Add copies with 50 % and 25 % of the triangles; they share the texture",
    )
    splats: bpy.props.BoolProperty(
        name="Point Cloud", description="Add the splats that the mesh was made from, as coloured points"
    )


class IM3D_PG_job(bpy.types.PropertyGroup):
    """A row of the list of finished jobs; `name` is what its search looks at."""

    folder: bpy.props.StringProperty()
    title: bpy.props.StringProperty()
    prompt: bpy.props.StringProperty()
    generator: bpy.props.StringProperty()
    seed: bpy.props.StringProperty()  # it may be larger than Blender's integers
    faces: bpy.props.IntProperty()
    finished: bpy.props.StringProperty()
    warnings: bpy.props.StringProperty()  # a line each
    thumbnail: bpy.props.StringProperty()
    height: bpy.props.FloatProperty()


def _job_chosen(session: IM3D_PG_session, context: bpy.types.Context) -> None:
    if session.index < len(session.jobs):
        session.height = session.jobs[session.index].height


class IM3D_PG_session(bpy.types.PropertyGroup):
    """WindowManager.im3d: not undone, read again after a file was loaded."""

    jobs: bpy.props.CollectionProperty(type=IM3D_PG_job)
    index: bpy.props.IntProperty(update=_job_chosen)
    search: bpy.props.StringProperty(
        name="Search", description="Show only jobs whose name or prompt holds these words", options={"TEXTEDIT_UPDATE"}
    )
    height: bpy.props.FloatProperty(
        name="Height (m)",
        description="Height of the imported object in metres, whatever unit the scene shows",
        default=1.0,
        min=0.001,
        max=1000.0,
        precision=3,
    )
    # Of the running job, -1 for none. When a property with an update changes, Blender draws its windows anew, with them
    # the status bar, which is in no list of areas.
    percent: bpy.props.IntProperty(default=-1, update=lambda session, context: None)


def refresh_jobs(context: bpy.types.Context) -> None:
    """Reads the jobs folder into the list; the chosen job stays chosen if it is still there."""
    session = context.window_manager.im3d
    chosen = session.jobs[session.index].folder if session.index < len(session.jobs) else ""
    session.jobs.clear()
    for job in finished_jobs.find_jobs(jobs_folder(context)):
        row = session.jobs.add()
        row.folder = str(job.folder)
        row.title = job.name
        row.prompt = job.prompt
        row.name = f"{job.name} {job.prompt}"
        row.generator, row.seed, row.faces = job.generator, str(job.seed), job.faces
        row.finished = finished_jobs.date_text(job.finished)
        row.warnings = "\n".join(job.warnings)
        row.height = job.height_m
        if job.preview is not None:
            row.thumbnail = thumbnails.load(job.preview)
    folders = [row.folder for row in session.jobs]
    session.index = folders.index(chosen) if chosen in folders else 0


def _refresh_soon() -> None:
    """Timer, once: while an add-on is being enabled, the context has no window manager to fill."""
    refresh_jobs(bpy.context)
    _set_defaults(bpy.context)


def _set_defaults(context: bpy.types.Context) -> None:
    """A scene that was never used with IM-3D starts with the preferred generator; nobody's choice: nothing written."""
    preferred = get_preferences(context).generator
    for scene in bpy.data.scenes if preferred != "auto" else ():
        if not scene.im3d.is_property_set("generator"):
            scene.im3d.generator = preferred


@bpy.app.handlers.persistent
def _file_loaded(*_: Any) -> None:
    refresh_jobs(bpy.context)
    _set_defaults(bpy.context)


def _preferences_changed(context: bpy.types.Context, change: events.Change) -> None:
    if change == "folders":
        refresh_jobs(context)


def attach() -> None:
    events.subscribe(_preferences_changed)
    bpy.types.Scene.im3d = bpy.props.PointerProperty(type=IM3D_PG_scene)
    bpy.types.WindowManager.im3d = bpy.props.PointerProperty(type=IM3D_PG_session)
    bpy.app.handlers.load_post.append(_file_loaded)
    bpy.app.timers.register(_refresh_soon, first_interval=0.0)


def detach() -> None:
    if bpy.app.timers.is_registered(_refresh_soon):
        bpy.app.timers.unregister(_refresh_soon)
    bpy.app.handlers.load_post.remove(_file_loaded)
    events.unsubscribe(_preferences_changed)
    del bpy.types.WindowManager.im3d
    del bpy.types.Scene.im3d


CLASSES = [IM3D_PG_scene, IM3D_PG_job, IM3D_PG_session]
