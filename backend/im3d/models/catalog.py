"""The models that can be installed, which of them are, and whose licences were accepted.

`models.toml` holds the facts. Each installed model has a folder under `im3d.shared.paths.models_folder()` with its
files and an `installed.json` that names them, their sizes and their SHA-256. Nothing here touches the network:
`im3d.models.hub` downloads.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.resources
import json
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from im3d.core.progress import Progress, silent
from im3d.core.storage import make_folder, write_json
from im3d.errors import InputError, ModelError
from im3d.shared.paths import models_folder

HUB_PAGE = "https://huggingface.co"
RECORD = "installed.json"
SHIPPED = Path(__file__).parent / "weights"
LICENCES = "licences.json"
_HASH_CHUNK = 16 << 20


@dataclass(frozen=True)
class Model:
    """One entry of models.toml, where the fields are explained.

    Attributes:
        variant: diffusers' name of the precision whose files are fetched, where a repository holds several.
    """

    name: str
    title: str
    purpose: Literal["orbit", "image", "mask", "loss"]
    files: tuple[str, ...]
    bytes: int
    licence: str
    licence_url: str
    commercial: Literal["yes", "no", "conditions"]
    gated: bool
    vram_gb: float
    repository: str = ""
    revision: str = ""
    shipped: bool = False
    sha256: dict[str, str] = field(default_factory=dict)
    note: str = ""
    attribution: tuple[str, ...] = ()
    variant: str | None = None

    @property
    def size(self) -> str:
        """Size of the download for people, e.g. "9.4 GB"."""
        return human_size(self.bytes)

    @property
    def page(self) -> str:
        """The model's page at the hub, where a gated model's terms are accepted; "" for a shipped one."""
        return f"{HUB_PAGE}/{self.repository}" if self.repository else ""

    @property
    def folder(self) -> Path:
        """Where it is or would be installed."""
        return SHIPPED / self.name if self.shipped else models_folder() / self.name

    def wants(self, path: str) -> bool:
        """Whether a file of the repository belongs to the installation."""
        return any(fnmatchcase(path, pattern) for pattern in self.files)


@dataclass(frozen=True)
class InstalledFile:
    """A file in a model's folder.

    Attributes:
        path: Relative to the folder, with forward slashes.
        bytes: Its size.
        sha256: Its hash when it was installed, hexadecimal.
        checked: What the hash was compared with: "published" (models.toml), "hub", or "nothing" for files of one's own
            that could not be compared.
    """

    path: str
    bytes: int
    sha256: str
    checked: Literal["published", "hub", "nothing"]


@functools.cache
def models() -> dict[str, Model]:
    """All models of models.toml by name, in its order."""
    text = importlib.resources.files("im3d.models").joinpath("models.toml").read_text(encoding="utf-8")
    return {
        name: Model(
            name, **{**entry, "files": tuple(entry["files"]), "attribution": tuple(entry.get("attribution", ()))}
        )
        for name, entry in tomllib.loads(text).items()
    }


def find_model(name: str) -> Model:
    """The model of that name.

    Raises:
        InputError: There is none.
    """
    try:
        return models()[name]
    except KeyError:
        raise InputError(f"There is no model {name}.", f"Known models: {', '.join(models())}.") from None


def installed(name: str) -> Path | None:
    """The folder of an installed model, or None. Looks at names and sizes only; `verify` reads the files."""
    model = find_model(name)
    folder = model.folder
    if model.shipped:
        return folder if all((folder / file).is_file() for file in model.files) else None
    files = installed_files(folder)
    complete = files and all((folder / f.path).is_file() and (folder / f.path).stat().st_size == f.bytes for f in files)
    return folder if complete else None


def require(name: str) -> Path:
    """The folder of a model that is needed now.

    Raises:
        ModelError: It is not installed; the hint says how large it is, the remedy downloads it.
    """
    folder = installed(name)
    if folder is not None:
        return folder
    model = find_model(name)
    if model.shipped:
        raise ModelError(f"The weights of {name}, which come with im3d, are missing.", "Install im3d again.")
    account = " It requires a Hugging Face account: accept the terms on the model page first." if model.gated else ""
    raise ModelError(
        f"{model.title} is not installed.", f"Download it first ({model.size}).{account}", f"download {name}"
    )


def installed_files(folder: Path) -> list[InstalledFile]:
    """What a model's folder is recorded to hold; empty when there is no readable record."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return [InstalledFile(**entry) for entry in record["files"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def record_installation(model: Model, revision: str, source: str, files: list[InstalledFile]) -> None:
    """Writes the record that makes `installed` true.

    Args:
        revision: The commit the files were listed at, or "" when they came from elsewhere.
        source: "hub", or the path they were taken from.
    """
    entries = [vars(f) for f in sorted(files, key=lambda f: f.path)]
    record: dict[str, Any] = {"repository": model.repository, "revision": revision, "source": source, "files": entries}
    write_json(model.folder / RECORD, record)


def verify(name: str, progress: Progress = silent) -> list[str]:
    """Reads every file of an installed model again.

    Returns:
        One sentence for each file that is missing or differs from the record; empty when all is well.

    Raises:
        ModelError: The model is not installed at all.
    """
    model = find_model(name)
    hashes = {file.path: file.sha256 for file in installed_files(model.folder)}
    if model.shipped:
        hashes = model.sha256
    elif not hashes:
        require(name)
    problems = []
    for number, (file_name, digest) in enumerate(hashes.items(), start=1):
        path = model.folder / file_name
        if not path.is_file():
            problems.append(f"{file_name} is missing.")
        elif sha256_of(path) != digest:
            problems.append(f"{file_name} differs from what was installed.")
        progress(number, len(hashes))
    return problems


def unreadable(path: Path, reason: object = "") -> ModelError:
    """The error of weights that are installed and cannot be read; its remedy gets them again.

    Args:
        path: The file or folder.
        reason: The message of the reader.
    """
    said = f" ({str(reason).splitlines()[0].rstrip('.')})" if str(reason).strip() else ""
    model = next((m for m in models().values() if path.is_relative_to(m.folder)), None)
    if model is None:
        return ModelError(f"{path} does not hold the weights that it should{said}.", "Provide another copy.")
    if model.shipped:
        return ModelError(f"The weights of {model.name} cannot be read{said}.", "Install im3d again.")
    return ModelError(f"{path} is damaged{said}.", f"Download {model.title} again.", f"download {model.name}")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_hash(path: Path) -> str:
    """The hash under which git, and so the hub, keeps a small file: SHA-1 of a header and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def licence_text(model: Model) -> str:
    """What the user is shown before accepting: a few lines."""
    use = {"yes": "allowed", "no": "not allowed", "conditions": "allowed under conditions"}[model.commercial]
    lines = [
        f"{model.title} ({model.repository or 'comes with im3d'}, {model.size})",
        f"  licence:        {model.licence}",
        f"  text:           {model.licence_url}",
        f"  commercial use: {use}",
    ]
    if model.note:
        lines.append(f"  note:           {model.note}")
    if model.gated:
        lines.append(f"  gated:          log in and accept the terms at {model.page}")
    if model.attribution:
        lines.append("  made from:")
        lines += [f"    {line}" for line in model.attribution]
    return "\n".join(lines)


def licence_accepted(name: str) -> bool:
    """Whether the model's licence, as models.toml names it, was accepted on this machine; a shipped one needs none."""
    model = find_model(name)
    return model.shipped or _accepted().get(name, {}).get("licence") == model.licence


def accept_licence(name: str) -> None:
    """Records in the models folder that the user accepted the licence."""
    model = find_model(name)
    make_folder(models_folder())
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"licence": model.licence, "url": model.licence_url, "accepted": now}
    write_json(models_folder() / LICENCES, {**_accepted(), name: entry})


def require_licence(model: Model) -> None:
    """Raises:
    ModelError: The licence has not been accepted.
    """
    if not licence_accepted(model.name):
        raise ModelError(
            f"The licence of {model.title} ({model.licence}) has not been accepted.",
            f"Read and accept it: {model.licence_url}",
            f"licence {model.name}",
        )


def _accepted() -> dict[str, dict[str, str]]:
    try:
        data = json.loads((models_folder() / LICENCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, dict)} if isinstance(data, dict) else {}


def human_size(count: float) -> str:
    """A number of bytes for people: "512 B", "177 MB", "9.4 GB" (decimal units, as the hub shows them)."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
