"""What can be done with a queued job: cancel, retry, resume, forget, look into its folder."""

from __future__ import annotations

from pathlib import Path

import bpy

from ..client.queue import QueuedJob
from ..core.job_request import MAX_SEED, PRESETS, random_seed
from ..core.placement import Placement, read_placement
from ..scene import arrival
from ..state import arrivals, open_file, session
from ..state.redraw import redraw


class JobOperator:
    """Shared by the operators on one job of the queue."""

    job: bpy.props.StringProperty(name="Job", description="Id of the job", options={"SKIP_SAVE"})

    def find(self) -> QueuedJob | None:
        """The job; reports an error when it is not in the queue (any more)."""
        known = session.current()
        job = known.find(self.job) if known is not None else None
        if job is None:
            self.report({"ERROR"}, "This job is not in the queue any more.")  # type: ignore[attr-defined]
        return job


class IM3D_OT_cancel(JobOperator, bpy.types.Operator):
    """Stop this job. What is finished stays in its folder, and it can be resumed"""

    bl_idname = "im3d.cancel"
    bl_label = "Cancel Job"

    def execute(self, context: bpy.types.Context) -> set[str]:
        job = self.find()
        if job is None:
            return {"CANCELLED"}
        session.ensure(context).queue.cancel(job.id)
        redraw(context)
        return {"FINISHED"}


class IM3D_OT_retry(JobOperator, bpy.types.Operator):
    """Make the same again with another seed"""

    bl_idname = "im3d.retry"
    bl_label = "Retry with Another Seed"

    seed: bpy.props.IntProperty(
        name="Seed",
        description="The new seed; -1 picks a random one",
        default=-1,
        min=-1,
        max=MAX_SEED,
        options={"SKIP_SAVE"},
    )
    preset: bpy.props.EnumProperty(
        name="Preset",
        description="The new preset",
        items=[("SAME", "Same", "The preset that the job had"), *PRESETS],
        options={"SKIP_SAVE"},
    )

    def execute(self, context: bpy.types.Context) -> set[str]:
        job = self.find()
        if job is None:
            return {"CANCELLED"}
        seed = random_seed() if self.seed < 0 else self.seed
        preset = job.request["preset"] if self.preset == "SAME" else self.preset
        placement = read_placement(job.folder) or Placement(document=open_file.document(), scene=context.scene.name)
        try:
            session.submit(context, {**job.request, "seed": seed, "preset": preset}, placement)
        except OSError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class IM3D_OT_resume(JobOperator, bpy.types.Operator):
    """Continue this job from its last finished step"""

    bl_idname = "im3d.resume"
    bl_label = "Resume Job"

    def execute(self, context: bpy.types.Context) -> set[str]:
        job = self.find()
        if job is None:
            return {"CANCELLED"}
        try:
            session.resume(context, job)
        except OSError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class IM3D_OT_resume_left(bpy.types.Operator):
    """Continue the jobs that were not finished when Blender was closed"""

    bl_idname = "im3d.resume_left"
    bl_label = "Resume All"

    def execute(self, context: bpy.types.Context) -> set[str]:
        session.resume_left(context, session.ensure(context))
        return {"FINISHED"}


class IM3D_OT_remove(JobOperator, bpy.types.Operator):
    """Take this job off the list. Its folder stays"""

    bl_idname = "im3d.remove"
    bl_label = "Remove from the List"

    def execute(self, context: bpy.types.Context) -> set[str]:
        job = self.find()
        if job is None:
            return {"CANCELLED"}
        session.ensure(context).queue.remove(job.id)
        redraw(context)
        return {"FINISHED"}


class IM3D_OT_clear_ended(bpy.types.Operator):
    """Take all jobs that have ended off the list. Their folders stay"""

    bl_idname = "im3d.clear_ended"
    bl_label = "Clear"

    def execute(self, context: bpy.types.Context) -> set[str]:
        session.clear_ended(context)
        return {"FINISHED"}


class IM3D_OT_arrive(JobOperator, bpy.types.Operator):
    """Add the finished object to the scene now, leaving the present mode"""

    bl_idname = "im3d.arrive"
    bl_label = "Import Now"

    def execute(self, context: bpy.types.Context) -> set[str]:
        job = self.find()
        if job is None:
            return {"CANCELLED"}
        known = session.ensure(context)
        known.notes.pop(job.id, None)
        arrivals.let_arrive(context, known, job.id, anywhere=True)
        return {"FINISHED"}

    @classmethod
    def description(cls, context: bpy.types.Context, properties: object) -> str:
        return (cls.__doc__ or "") if arrival.busy(context) else "Add the finished object to the scene now"


class IM3D_OT_free_memory(bpy.types.Operator):
    """Drop the models that are kept in memory for the next job"""

    bl_idname = "im3d.free_memory"
    bl_label = "Free Memory"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        known = session.current()
        return known is not None and not any(job.state == "running" for job in known.queue.jobs)

    def execute(self, context: bpy.types.Context) -> set[str]:
        session.ensure(context).queue.free_memory()
        return {"FINISHED"}


class IM3D_OT_open_folder(bpy.types.Operator):
    """Show this folder in the file browser of the system"""

    bl_idname = "im3d.open_folder"
    bl_label = "Open Folder"

    folder: bpy.props.StringProperty(name="Folder", subtype="DIR_PATH", options={"SKIP_SAVE"})

    def execute(self, context: bpy.types.Context) -> set[str]:
        folder = Path(bpy.path.abspath(self.folder))
        if not folder.is_dir():
            self.report({"ERROR"}, "This folder does not exist.")
            return {"CANCELLED"}
        bpy.ops.wm.path_open(filepath=str(folder))
        return {"FINISHED"}


CLASSES = [
    IM3D_OT_cancel,
    IM3D_OT_retry,
    IM3D_OT_resume,
    IM3D_OT_resume_left,
    IM3D_OT_remove,
    IM3D_OT_clear_ended,
    IM3D_OT_arrive,
    IM3D_OT_free_memory,
    IM3D_OT_open_folder,
]
