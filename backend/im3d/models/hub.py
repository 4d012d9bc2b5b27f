"""Fetching models: from the hub, resumable and checked, or from files the user already has.

What a hub states is not believed where it matters: a mirror may be anybody's. Paths stay in the model's folder, a
pinned revision is the one that is fetched, and every file is compared with a hash: of models.toml, or where none is
published with the one that the hub lists for that commit (`InstalledFile.checked` says which).

huggingface-hub speaks the protocol: its token (HF_TOKEN or its login), HF_ENDPOINT, HF_HUB_OFFLINE and the usual proxy
variables all work. Its own downloader throws an interrupted file away; ours keeps the part on disk and goes on from
there, since these files have many gigabytes.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from im3d.core.progress import Progress, silent
from im3d.core.storage import make_folder, translate_os_errors
from im3d.errors import DiskError, InputError, ModelError
from im3d.models.catalog import (
    HUB_PAGE,
    InstalledFile,
    Model,
    find_model,
    git_blob_hash,
    human_size,
    installed,
    installed_files,
    record_installation,
    require,
    require_licence,
    sha256_of,
    verify,
)

METADATA_TIMEOUT_S = 20.0
# A step of `Progress` during a download.
MEBIBYTE = 1 << 20
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it.

    Attributes:
        path: Relative to the repository.
        bytes: Its size.
        hash: SHA-256 (64 hexadecimal digits) of large files, git's blob hash (40) of small ones.
    """

    path: str
    bytes: int
    hash: str


def download(name: str, progress: Progress = silent) -> Path:
    """Installs a model from the hub and returns its folder.

    What is installed already is read again: nothing is fetched when all is well, and damaged files are fetched anew.
    What an interrupted download has fetched stays on disk, and the next call goes on from there.

    Args:
        progress: Called with mebibytes; raising `CancelledError` from it stops the download.

    Raises:
        ModelError: The licence is not accepted, the hub refuses or cannot be reached, or a file's hash is wrong (it is
            removed).
        DiskError: The disk has not enough room; nothing is fetched then.
        InputError: The models folder cannot be written.
    """
    model = find_model(name)
    if installed(name) is not None and _unharmed(model):
        return model.folder
    if model.shipped:
        require(name)
        raise ModelError(f"The weights of {name}, which come with im3d, are damaged.", "Install im3d again.")
    require_licence(model)
    if _offline():
        raise ModelError(
            f"{model.title} cannot be downloaded: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.",
            "Unset it, or install the model from files of your own.",
        )
    make_folder(model.folder)
    with _explained(model), _alone(model):
        revision, files = _listing(model)
        _require_space(model, files)
        total = sum(f.bytes for f in files)
        done = 0
        fetched = []
        for file in files:
            fetched.append(_fetch(model, revision, file, _Counter(progress, done, total)))
            done += file.bytes
    record_installation(model, revision, "hub", fetched)
    return model.folder


def install_local(name: str, source: Path, progress: Progress = silent) -> Path:
    """Installs a model from a file or folder that the user has, and returns its folder.

    Files are hard-linked where the disk allows it, else copied. Hashes are compared with models.toml; for files it does
    not list, with the hub when that can be reached, and otherwise they are recorded as they are.

    Raises:
        ModelError: The licence is not accepted, or a hash is wrong.
        InputError: `source` does not hold the model's files.
        DiskError: The disk is full.
    """
    model = find_model(name)
    if model.shipped:
        raise InputError(f"{name} comes with im3d.", "Other weights of it go into the models folder as they are.")
    require_licence(model)
    found = _local_files(model, source)
    known = _hub_hashes(model) if any(path not in model.sha256 for path in found) else {}
    make_folder(model.folder)
    files = []
    for number, (path, origin) in enumerate(found.items(), start=1):
        files.append(_checked(model, path, origin, known.get(path), owned=False))
        _place(origin, model.folder / path)
        progress(number, len(found))
    record_installation(model, "", str(source), files)
    return model.folder


class _Counter:
    """Turns bytes of one file into `Progress` of the whole download."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, in_file: int) -> None:
        steps = max(1, -(-self._total // MEBIBYTE))
        self._progress(min(steps, max(1, (self._before + in_file) // MEBIBYTE)), steps)


class _PartFile(io.FileIO):
    """A file that reports its length after each write."""

    def __init__(self, path: Path, count: _Counter) -> None:
        super().__init__(path, "r+" if path.exists() else "w+")
        self.seek(0, os.SEEK_END)
        self._count = count

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += super().write(view[written:]) or 0
        self._count(self.tell())
        return written


def _fetch(model: Model, revision: str, file: RemoteFile, count: _Counter) -> InstalledFile:
    """One file of the hub, continued where an earlier attempt stopped, and checked."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target = model.folder / file.path
    part = _part(model, file)
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.bytes:
            # Left by an attempt that fetched this file and stopped at a later one.
            with suppress(ModelError):
                return _checked(model, file.path, target, file.hash, owned=True)
        if part.is_file() and part.stat().st_size > file.bytes:
            part.unlink()
        with _PartFile(part, count) as destination:
            http_get(
                hf_hub_url(model.repository, file.path, revision=revision, endpoint=_endpoint()),
                destination,
                resume_size=destination.tell(),
                headers=build_hf_headers(library_name="im3d"),
                expected_size=file.bytes,
                displayed_filename=file.path,
                tqdm_class=_silent_bar(),
            )
        os.replace(part, target)
    return _checked(model, file.path, target, file.hash, owned=True)


def _checked(model: Model, path: str, file: Path, hub_hash: str | None, owned: bool) -> InstalledFile:
    """The record of a file whose hash is right.

    Args:
        hub_hash: What the hub states, when it is known.
        owned: Whether the file is ours to remove when it is wrong.

    Raises:
        ModelError: The hash differs from models.toml or from the hub.
    """
    actual = sha256_of(file)
    published = model.sha256.get(path)
    right = published is None or actual == published
    if hub_hash:
        right = right and hub_hash == (actual if len(hub_hash) == 64 else git_blob_hash(file))
    if not right:
        if owned:
            file.unlink()
            raise ModelError(
                f"{path} of {model.name} does not have the expected hash and was removed.",
                "Try the download again; if it happens twice, do not use this source.",
                f"download {model.name}",
            )
        raise ModelError(
            f"{file} is not the published {path} of {model.name}: its hash is another.",
            f"Bring a copy from {model.page}, or download it ({model.size}).",
            f"download {model.name}",
        )
    checked: Literal["published", "hub", "nothing"] = "published" if published else "hub" if hub_hash else "nothing"
    return InstalledFile(path, file.stat().st_size, actual, checked)


def _listing(model: Model) -> tuple[str, list[RemoteFile]]:
    """The commit that the model's revision names now, and the wanted files with their sizes and hashes."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=_endpoint()).model_info(
        model.repository, revision=model.revision, files_metadata=True, timeout=METADATA_TIMEOUT_S
    )
    files = [
        RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else s.blob_id or "")
        for s in info.siblings or []
        if model.wants(s.rfilename)
    ]
    for file in files:
        if not _sound(file):
            raise _not_trusted(f"lists {file.path[:80]!r}, which no model holds")
    if COMMIT.fullmatch(model.revision) and info.sha != model.revision:
        raise _not_trusted(f"gives another revision of {model.repository} than was requested")
    if info.sha and not COMMIT.fullmatch(info.sha):
        raise _not_trusted(f"names no commit of {model.repository}")
    missing = [pattern for pattern in model.files if not any(fnmatchcase(f.path, pattern) for f in files)]
    if missing or not info.sha:
        raise ModelError(
            f"{model.page} no longer holds {', '.join(missing) or 'what models.toml names'}.",
            "Update im3d, or install the model from files of your own.",
        )
    return info.sha, files


def _sound(file: RemoteFile) -> bool:
    """Whether a file's path stays in the model's folder on every system, and its size and hash can be such."""
    names = file.path.split("/")
    return (
        all(re.fullmatch(r"[\w+-][\w .+-]{0,200}", name) and not name.endswith((".", " ")) for name in names)
        and PurePosixPath(file.path).as_posix() == file.path
        and file.bytes >= 0
        and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.hash) is not None
    )


def _not_trusted(what: str) -> ModelError:
    return ModelError(f"{_endpoint() or HUB_PAGE} {what}.", "Do not use this mirror.")


def _unharmed(model: Model) -> bool:
    """Whether an installed model's files are all what they should be; files that were never compared are not."""
    if verify(model.name):
        return False
    files = installed_files(model.folder)
    known = all(f.checked != "nothing" and model.sha256.get(f.path, f.sha256) == f.sha256 for f in files)
    return known or _offline()


def _hub_hashes(model: Model) -> dict[str, str]:
    """Hashes by path from the hub, or none where it cannot be reached."""
    if _offline():
        return {}
    try:
        with _explained(model):
            return {f.path: f.hash for f in _listing(model)[1]}
    except ModelError:
        return {}


def _local_files(model: Model, source: Path) -> dict[str, Path]:
    """The user's files by their path in the repository."""
    if not source.exists():
        raise InputError(f"{source} does not exist.", "Check the path.")
    if source.is_file():
        # A single file may have been renamed; its hash and its content decide.
        found = {model.files[0]: source} if len(model.files) == 1 and "*" not in model.files[0] else {}
    else:
        paths = {p.relative_to(source).as_posix(): p for p in sorted(source.rglob("*")) if p.is_file()}
        found = {relative: p for relative, p in paths.items() if model.wants(relative)}
    missing = [pattern for pattern in model.files if not any(fnmatchcase(path, pattern) for path in found)]
    if missing:
        raise InputError(
            f"{source} does not hold {', '.join(missing)} of {model.name}.",
            f"Give a copy of {model.page}{', or the file itself' if len(model.files) == 1 else ''}.",
        )
    return found


def _place(origin: Path, target: Path) -> None:
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(origin):
            return
        target.unlink(missing_ok=True)
        try:
            os.link(origin.resolve(), target)
        except OSError:
            shutil.copyfile(origin, target)


def _part(model: Model, file: RemoteFile) -> Path:
    """Where a file grows while it is fetched; its hash is in the name, so that a changed file starts anew."""
    target = model.folder / file.path
    return target.with_name(f".{target.name}.{file.hash[:12]}.part")


def _require_space(model: Model, files: list[RemoteFile]) -> None:
    needed = 0
    for file in files:
        target, part = model.folder / file.path, _part(model, file)
        present = target if target.is_file() else part
        needed += max(0, file.bytes - (present.stat().st_size if present.is_file() else 0))
    free = shutil.disk_usage(model.folder).free
    if needed > free:
        raise DiskError(
            f"{model.name} needs {human_size(needed)} more, but {model.folder} has {human_size(free)} free.",
            "Free some space, or set IM3D_HOME to a folder on a larger disk.",
        )


@contextmanager
def _alone(model: Model) -> Iterator[None]:
    """Keeps a second process from writing into the same parts.

    Raises:
        InputError: Another process is installing this model.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(model.folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"Another process is installing {model.name}.", "Wait for it, or stop it first.") from None


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Turns what the hub's client raises into sentences."""
    import httpx2
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    _require_proxy()
    _require_sound_token(model)
    again, remedy = "What has arrived is kept; the next download goes on from there.", f"download {model.name}"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and get_token():
            raise ModelError(
                "Hugging Face does not accept your access token.", "Paste one that is valid.", f"token {model.name}"
            ) from error
        if status == 401:
            raise ModelError(
                f"{model.title} requires a Hugging Face account.",
                "Accept the terms on the model page, then paste your token.",
                f"token {model.name}",
            ) from error
        if status == 403:
            raise ModelError(
                f"Your Hugging Face account has no access to {model.title} yet.",
                "Accept the terms on the model page with the account of your token, then try again.",
                f"token {model.name}",
            ) from error
        if status == 404:
            raise ModelError(
                f"{_endpoint() or HUB_PAGE} has no {model.repository}, or not its revision {model.revision}.",
                "Check HF_ENDPOINT, update im3d, or install the model from files of your own.",
            ) from error
        raise ModelError(f"The hub answered {status} for {model.repository}.", again, remedy) from error
    except httpx2.HTTPError as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ModelError(
            f"The hub at {_endpoint() or HUB_PAGE} cannot be reached ({reason}).",
            f"Check the connection (HTTPS_PROXY and HF_ENDPOINT are heeded). {again}",
            remedy,
        ) from error
    except OSError as error:
        # http_get raises a bare OSError when the connection ends early; those of the disk carry an errno.
        if error.errno is not None:
            raise
        raise ModelError(f"The download of {model.name} ended early.", again, remedy) from error
    except Exception as error:
        if not type(error).__module__.startswith("socksio"):  # whose errors the hub's client lets through
            raise
        raise ModelError(
            "What ALL_PROXY names does not answer as a SOCKS proxy.", "Check ALL_PROXY.", remedy
        ) from error


def _require_proxy() -> None:
    """Raises:
    ModelError: A proxy is set that cannot be used.
    """
    import httpx2
    from huggingface_hub import get_session

    try:
        get_session()
    except ImportError as error:
        raise ModelError(
            "A SOCKS proxy is set (ALL_PROXY), and this installation lacks the package socksio that it needs.",
            "Set an HTTP proxy (HTTPS_PROXY) and no ALL_PROXY, or install the backend again.",
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        reason = str(error).rstrip(".")
        raise ModelError(
            f"The proxy that is set cannot be used: {reason}.", "Check ALL_PROXY and HTTPS_PROXY."
        ) from error


def _require_sound_token(model: Model) -> None:
    """What cannot be a token never reaches the hub's client, whose errors would quote it.

    Raises:
        ModelError: The user's token holds spaces, or other characters than printable ASCII.
    """
    from huggingface_hub import get_token

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ModelError(
            "Your access token holds characters that no token has.", "Copy it again.", f"token {model.name}"
        )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _offline() -> bool:
    """What huggingface-hub goes by, read at each call and not when it is imported."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def _silent_bar() -> Any:
    """A tqdm without output: `Progress` reports the download."""
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

    return Silent
