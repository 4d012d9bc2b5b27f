"""`bpy.ops.im3d.batch`: a table of jobs. A failure costs one row; a second run makes what is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import bpy

from ..client.queue import QueuedJob
from ..core.batch_table import Row, read_table, resume, write_results
from ..core.job_request import PRESETS, RequestError
from ..core.placement import Placement
from ..state import open_file, session
from .generate import failure_text, panel_inputs, print_progress

GAP = 1.5  # metres between the objects of a batch, which stand in a row


class Batch:
    """A table under way; the session tells it of every job that ends.

    Args:
        rows: The table.
        results: CSV file that is written again whenever a row ends.
    """

    def __init__(self, rows: list[Row], results: Path) -> None:
        self.rows = rows
        self.results = results
        self.jobs: dict[str, Row] = {}

    def ended(self, job: QueuedJob) -> None:
        """Records how a job of the table ended; others are none of its business."""
        row = self.jobs.get(job.id)
        if row is not None:
            row.status = job.state
            row.message = "" if job.state == "done" else failure_text(job)
            # A table that cannot be written now, for instance since a spreadsheet holds it open, is tried again.
            with contextlib.suppress(RequestError, OSError):
                write_results(self.rows, self.results)


class IM3D_OT_batch(bpy.types.Operator):
    """Make one object per row of a CSV table, or per picture of a folder"""

    bl_idname = "im3d.batch"
    bl_label = "Generate a Batch"

    filepath: bpy.props.StringProperty(
        name="Table",
        description="A CSV file with a column prompt, image or views; or a folder of pictures",
        subtype="FILE_PATH",
        options={"SKIP_SAVE"},
    )
    filter_glob: bpy.props.StringProperty(default="*.csv", options={"HIDDEN", "SKIP_SAVE"})
    results: bpy.props.StringProperty(
        name="Results",
        description="CSV file that says how each line ended; empty puts it beside the table",
        subtype="FILE_PATH",
        options={"SKIP_SAVE"},
    )
    preset: bpy.props.EnumProperty(
        name="Preset", description="For lines that name none", items=PRESETS, default="standard", options={"SKIP_SAVE"}
    )
    arrive: bpy.props.BoolProperty(
        name="Import", description="Import the objects, side by side", default=True, options={"SKIP_SAVE"}
    )
    library: bpy.props.StringProperty(
        name="Library",
        description="Asset library that receives the objects; LOCAL marks them in this file only, empty does neither",
        options={"SKIP_SAVE"},
    )
    lods: bpy.props.BoolProperty(
        name="Levels of Detail", description="Add copies with 50 % and 25 % of the triangles", options={"SKIP_SAVE"}
    )
    splats: bpy.props.BoolProperty(
        name="Point Cloud", description="Add the splats as coloured points", options={"SKIP_SAVE"}
    )
    wait: bpy.props.BoolProperty(
        name="Wait",
        description="Return when all lines have ended; always so without a window",
        options={"HIDDEN", "SKIP_SAVE"},  # in the dialog it would freeze the window
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        inputs = panel_inputs(context)
        self.preset, self.lods, self.splats = inputs["preset"], inputs["lods"], inputs["splats"]
        self.library = inputs.get("library", "")
        if not self.filepath:
            context.window_manager.fileselect_add(self)
            return {"RUNNING_MODAL"}
        return self.execute(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        table = Path(bpy.path.abspath(self.filepath)).absolute()
        try:
            rows = read_table(table, self.preset)
            results = Path(bpy.path.abspath(self.results)) if self.results else results_beside(table)
            resume(rows, results)
            batch = Batch(rows, results)
            write_results(rows, results)
        except (RequestError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self._submit(context, batch)
        if self.wait or bpy.app.background:
            session.wait_for(context, list(batch.jobs), print_progress)
        self._report(rows, results)
        return {"FINISHED"}

    def _submit(self, context: bpy.types.Context, batch: Batch) -> None:
        session.ensure(context).batches.append(batch)
        scale = context.scene.unit_settings.scale_length
        x, y, z = context.scene.cursor.location
        for row in batch.rows:
            if row.request is None or row.status == "done":
                continue
            placement = Placement(
                blend=bpy.data.filepath,
                document=open_file.document(),
                scene=context.scene.name,
                collection=row.collection or context.collection.name,
                make_collection=bool(row.collection),
                location=(x + (row.number - 1) * GAP / scale, y, z),
                arrive=self.arrive,
                select=False,
                library=self.library,
                lods=self.lods,
                splats=self.splats,
            )
            try:
                job = session.submit(context, row.request, placement)
            except (OSError, ValueError) as error:
                row.status, row.message = "failed", str(error)
                continue
            row.job = str(job.folder)
            batch.jobs[job.id] = row

    def _report(self, rows: list[Row], results: Path) -> None:
        done, failed = (sum(row.status == status for row in rows) for status in ("done", "failed"))
        waiting = len(rows) - done - failed
        self.report(
            {"WARNING"} if failed else {"INFO"},
            f"{done} done, {failed} failed, {waiting} waiting; the results are in {results}",
        )


def results_beside(table: Path) -> Path:
    """props.csv → props.results.csv; for a folder, in it."""
    return table / "results.csv" if table.is_dir() else table.with_suffix(".results.csv")


CLASSES = [IM3D_OT_batch]
