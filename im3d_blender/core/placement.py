"""Where a job's object goes in Blender, kept beside the job so that it outlives a closed Blender. No bpy here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ...backend.im3d.shared.files import replace_file
from ...backend.im3d.shared.names import PLACEMENT_FILE


@dataclass(frozen=True)
class Placement:
    """Written when a job is submitted, read when it ends.

    Attributes:
        blend: The .blend that was open, "" when it was not saved yet.
        document: Tells apart the files that one Blender session had open, one after the other.
        scene: Name of the scene.
        collection: Name of the collection that was active, or that was requested.
        make_collection: Whether it was requested by name, so that it is made where the scene has none of that name.
        location: Where the centre of the base goes, in Blender units.
        step_aside: Whether the object goes beside what stands there already.
        arrive: False: the job is only made; it is imported from the history when wanted.
        select: Whether the new object becomes the selected one.
        library: Name of the asset library that receives the object, "LOCAL" for an asset of the open file, "" for none.
        lods: Whether reduced copies are made too.
        splats: Whether the splats come along as a point cloud.
    """

    blend: str = ""
    document: str = ""
    scene: str = ""
    collection: str = ""
    make_collection: bool = False
    location: tuple[float, float, float] = (0.0, 0.0, 0.0)
    step_aside: bool = True
    arrive: bool = True
    select: bool = True
    library: str = ""
    lods: bool = False
    splats: bool = False

    def is_for(self, blend: str, document: str) -> bool:
        """Whether the open file is the one in which the job was submitted."""
        return self.document == document or bool(self.blend and self.blend == blend)

    def write(self, folder: Path) -> None:
        """Writes it into the job folder, which may not exist yet."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / PLACEMENT_FILE, json.dumps(dataclasses.asdict(self)).encode())


def read_placement(folder: Path) -> Placement | None:
    """The placement of a job, None when it was not submitted from Blender."""
    try:
        data = json.loads((folder / PLACEMENT_FILE).read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            return None
        known = {f.name: data[f.name] for f in dataclasses.fields(Placement) if f.name in data}
        x, y, z = (float(v) for v in known.get("location", (0, 0, 0)))
        return Placement(**{**known, "location": (x, y, z)})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
