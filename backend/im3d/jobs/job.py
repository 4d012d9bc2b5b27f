"""The job folder: the request, the state, and everything the job made.

    request.json    the `Request`, never changed after the start
    state.json      status, finished steps, seconds of each stage
    log.txt         progress and tracebacks
    input.png       the user's picture            subject.png   the same, cut out and framed
    views/          the orbit: view_000.png …, orbit.json
    work/           state between steps, removed when the job is done
    splats.ply  mesh.glb  preview.png  turntable.webp  result.json

Every file is written beside its place and then renamed, so a job killed at any point goes on from its last finished
step. One process works on a job at a time; the operating system frees the lock when that process dies. A folder with
files that are not a job's is never made one, so that nothing of the user's is overwritten or removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from im3d.core.storage import make_folder, require_file, strangers, translate_os_errors, write_json
from im3d.errors import InputError
from im3d.settings import (
    Settings,
    finite,
    preset_settings,
    renaming_note,
    setting_names,
    settings_from_json,
    shown,
    whole,
)
from im3d.shared.locks import try_lock
from im3d.shared.names import INPUT_FOLDER, PLACEMENT_FILE, PRESETS, QUEUED_FILE, REQUEST_FILE, default_name, printable

FORMAT = 1
# What the add-on leaves in a job's folder before the job is there.
_FROM_ADDON = frozenset({QUEUED_FILE, PLACEMENT_FILE, INPUT_FOLDER})
# What the steps leave in `work`, also when they are killed; nothing else is ever removed from there.
_WORK = re.compile(
    r"(surface|textured)\.npz|fit\.pt|refine_\d+(/raised)?|refine_\d+/(raised/)?(view_\d+\.png|orbit\.json)"
    r"|(refine_\d+/(raised/)?)?\.([^/]+\.part\.\w+|write-test-\d+)"
)
Status = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What a job should make. Exactly one of `views`, `image` and `prompt` is the source.

    Attributes:
        name: Name of the object.
        views: Folder of pictures or turntable video.
        image: One picture.
        prompt: One sentence; may also accompany an image.
        mask: The user's own mask of `image`.
        generator: "auto" or a generator's name.
        preset: Name of the preset the settings came from.
        seed: Seed of every random choice.
        recenter: Whether `image` is cut out and framed; False: it is framed as an orbit view already.
        elevation_deg: Elevation of the views when the user knows it.
        height_m: Height of the object in metres.
        blend: .blend file to save the result into as well.
        settings: All settings.
        warnings: What the user should know about the request, a sentence each; not part of it.
    """

    name: str
    views: str | None = None
    image: str | None = None
    prompt: str = ""
    mask: str | None = None
    generator: str = "auto"
    preset: str = "standard"
    seed: int = 0
    recenter: bool = True
    elevation_deg: float | None = None
    height_m: float = 1.0
    blend: str | None = None
    settings: Settings = field(default_factory=Settings)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("name", "prompt"):  # meshes, .blend files and tables hold them, all of them in UTF-8
            object.__setattr__(self, name, printable(getattr(self, name)))
        if self.views is not None and self.image is not None:
            raise InputError("A job has views or an image, not both.", "Give one of the two.")
        if self.views is None and self.image is None and not self.prompt.strip():
            raise InputError("There is nothing to start from.", "Give a picture, a sentence or views.")
        if self.mask is not None and self.image is None:
            raise InputError("A mask belongs to a picture, and none is given.", "Give the picture too, or no mask.")
        if not 0 < self.height_m <= 1000:
            raise InputError(f"A height of {self.height_m:g} m is out of range.", "Use a height above 0, up to 1000 m.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"The seed {self.seed} is out of range.", "Use a seed from 0 to 2^63 - 1.")

    def check_files(self) -> None:
        """Looks for the files that the request names.

        Raises:
            InputError: One is missing, or no file; or the .blend would replace something else.
        """
        for path, what in ((self.image, "a picture"), (self.mask, "a picture"), (self.views, "a folder or a video")):
            if path is None:
                continue
            if not os.path.exists(path):
                raise InputError(f"{path} does not exist.", "Check the path.")
            if path != self.views or not os.path.isdir(path):
                require_file(Path(path), what)
        if self.blend is not None and not self.blend.lower().endswith(".blend"):
            raise InputError(f"{self.blend} does not end in .blend.", "Name a .blend file.")
        if self.blend is not None and os.path.exists(self.blend):
            if not os.path.isfile(self.blend):
                raise InputError(f"{self.blend} is not a file.", "Name a .blend file.")
            sources = (s for s in (self.image, self.mask, self.views) if s is not None)
            if any(os.path.samefile(self.blend, source) for source in sources):
                raise InputError(f"{self.blend} is what the job starts from.", "Give the .blend another name.")

    @property
    def only_prompt(self) -> bool:
        """Whether the picture is still to be generated."""
        return self.views is None and self.image is None

    def to_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        return {"format": FORMAT, **{name: content[name] for name in self._parts()}}

    @classmethod
    def _parts(cls) -> list[str]:
        """Names of what belongs to a request."""
        return [f.name for f in dataclasses.fields(cls) if f.compare]

    @classmethod
    def from_partial(cls, data: Any) -> Request:
        """A request in which only the source must be given, and `settings` are changes of the preset.

        Raises:
            InputError: Unknown or contradictory fields, wrong types, or a file that is not there.
        """
        known = {*cls._parts(), "format"}
        if not isinstance(data, dict) or set(data) - known:
            unknown = ", ".join(sorted(set(data) - known)) if isinstance(data, dict) else type(data).__name__
            raise InputError(f"The request has an unknown part: {unknown}.", "Update the add-on or the backend.")
        given = _typed({k: v for k, v in data.items() if v is not None and k not in ("settings", "format")})
        preset = given.get("preset", "standard")
        if preset not in PRESETS:
            raise InputError(f"There is no preset {preset}.", f"Choose one of: {', '.join(PRESETS)}.")
        settings = preset_settings(preset, provided_views="views" in given)
        changes = data.get("settings") or {}
        settings = settings_from_json(changes, settings)
        source_file = given.get("views") or given.get("image")
        given.setdefault("name", default_name(given.get("prompt", ""), source_file))
        request = cls(**given, settings=settings, warnings=renaming_note(setting_names(changes)))
        request.check_files()
        return request

    @classmethod
    def from_json(cls, data: Any) -> Request:
        """Raises InputError when the data is not a request of this format."""
        try:
            if data["format"] != FORMAT:
                raise InputError(f"The request has format {data['format']}, this version reads {FORMAT}.")
            known = {name: data[name] for name in cls._parts() if name in data}
            stored = known.pop("settings")
            settings, warnings = settings_from_json(stored), renaming_note(setting_names(stored))
            return cls(**_typed(known), settings=settings, warnings=warnings)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("The request is incomplete or damaged.", "Start the job again.") from error


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request, each of its type.

    Raises:
        InputError: One is of another type.
    """
    hints = get_type_hints(Request)
    typed: dict[str, Any] = {}
    for name, value in fields.items():
        kinds = get_args(hints[name]) or (hints[name],)
        try:
            if value is None and type(None) in kinds:
                typed[name] = None
            elif int in kinds or float in kinds:
                if isinstance(value, str):
                    raise TypeError
                typed[name] = whole(value) if int in kinds else finite(value)
            elif isinstance(value, kinds):
                typed[name] = value
            else:
                raise TypeError
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} cannot be {shown(value)}.", "Correct this part of the request.") from error
    return typed


@dataclass
class State:
    """How far a job is.

    Attributes:
        status: See `Status`; "running" with nobody holding the lock means that the process died.
        finished: Steps that are complete, in order.
        timings_s: Seconds spent in each stage so far.
        notes: Facts that later steps and the result need, e.g. the estimated elevation.
        error: {code, message, hint, remedy} of the last failure, or None.
    """

    status: Status = "queued"
    finished: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None


class Job:
    """One job folder."""

    def __init__(self, folder: Path, request: Request, state: State) -> None:
        self.folder = folder
        self.request = request
        self.state = state

    @classmethod
    def create(cls, folder: Path, request: Request) -> Job:
        """A new job, or the one that is already there if its request is the same.

        A job that failed before its first step, for a mistake in its request, gives way to the corrected one.

        Raises:
            InputError: The folder holds another job or the user's own files, or cannot be written; or another process
                is making a job of it.
            DiskError: The disk is full.
        """
        known = cls._same(folder, request)
        if known is not None:
            return known
        make_folder(folder)
        job = cls(folder, request, State())
        with job.locked():
            # Another process may have been faster.
            known = cls._same(folder, request)
            if known is not None:
                return known
            write_json(folder / REQUEST_FILE, request.to_json())
            job.state.notes["warnings"] = list(request.warnings)
            job.save()
        return job

    @classmethod
    def _same(cls, folder: Path, request: Request) -> Job | None:
        """The job of a folder if its request is the same; None where a new one may be made.

        Raises:
            InputError: Neither.
        """
        if not os.path.exists(folder / REQUEST_FILE):
            found = strangers(folder, _FROM_ADDON)
            if found:
                raise InputError(
                    f"{folder} holds files that are not a job's: {', '.join(found[:3])}{' …' if found[3:] else ''}.",
                    "Choose a new folder for the job, so that nothing of yours is overwritten.",
                )
            return None
        job = cls.open(folder)
        same = dataclasses.replace(job.request, blend=request.blend)
        if same.to_json() == request.to_json():
            job.request = request
            return job
        if job.state.status != "failed" or job.state.finished:
            raise InputError(f"{folder} already holds another job.", "Choose another folder, or delete this one.")
        for source in filter(None, (request.views, request.image, request.mask)):
            real, place = Path(os.path.realpath(source)), Path(os.path.realpath(folder))
            if real.is_relative_to(place) and not real.is_relative_to(place / INPUT_FOLDER):
                raise InputError(f"{source} lies in the folder of the job.", "Choose another folder for the job.")
        return None

    @classmethod
    def open(cls, folder: Path) -> Job:
        """The job in a folder.

        Raises:
            InputError: There is none, or its files are damaged.
        """
        try:
            request = Request.from_json(json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(f"{folder} holds no job.", "Give the folder of a job.") from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _damaged(folder) from error
        job = cls(folder, request, State())
        job.read_state()
        return job

    def read_state(self) -> None:
        """Reads the state again, which another process may have changed; without the file nothing was done yet.

        Raises:
            InputError: It is damaged.
        """
        try:
            self.state = State(**json.loads((self.folder / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            self.state = State()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _damaged(self.folder) from error

    @property
    def work(self) -> Path:
        """Folder for the state between steps."""
        return self.folder / "work"

    def save(self) -> None:
        write_json(self.folder / "state.json", dataclasses.asdict(self.state))

    def finish(self, step: str, stage: str, seconds: float) -> None:
        """Records a complete step; its files must be in place."""
        self.state.finished.append(step)
        self.state.timings_s[stage] = round(self.state.timings_s.get(stage, 0.0) + seconds, 3)
        self.save()

    def end(self, status: Status, error: dict[str, str] | None = None) -> bool:
        """Records how a job ended whose process could not: it died, or never began.

        Returns:
            Whether that was recorded; False: the job is done already, and stays so.

        Raises:
            InputError: Another process works on it.
        """
        with self.locked():
            self.read_state()
            if self.state.status == "done":
                return False
            self.state.status, self.state.error = status, error
            self.save()
        return True

    def clear_work(self) -> None:
        """Removes what only a resumed job would need; what others have put there stays."""
        inside = sorted(self.work.rglob("*"), reverse=True)  # a folder comes after what is in it
        ours = [path for path in inside if _WORK.fullmatch(path.relative_to(self.work).as_posix())]
        for path in [*ours, self.work]:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def log(self, text: str) -> None:
        """Appends a line to log.txt; a log that cannot be written never stops a job."""
        try:
            with open(self.folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError:
            sys.stderr.write(f"{text}\n")

    def log_exception(self, error: BaseException) -> None:
        self.log("".join(traceback.format_exception(error)).rstrip())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the job for this process.

        Raises:
            InputError: Another process works on it.
        """
        path = self.folder / ".lock"
        with translate_os_errors(path):
            file = open(path, "a+b")  # noqa: SIM115 - closed below, after the lock that it carries
        try:
            if not try_lock(file):
                raise InputError(f"Another process is working on {self.folder}.", "Wait for it, or stop it first.")
            yield
        finally:
            file.close()


def finished_result(job: Job) -> dict[str, Any]:
    """A finished job's result.json with absolute paths, as `--json` prints it.

    Raises:
        InputError: The file is gone or damaged.
    """
    try:
        result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
        paths = {k: str(job.folder / result[k]) for k in ("mesh", "splats", "preview", "turntable") if result[k]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(job.folder) from error
    return {**result, **paths, "job": str(job.folder), "blend": job.request.blend}


def _damaged(folder: Path) -> InputError:
    return InputError(f"The job in {folder} cannot be read.", "Start it again in another folder.")


def stage_seed(seed: int, step: str) -> int:
    """The seed of one step: independent of the others, and the same whether the job was interrupted or not."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
