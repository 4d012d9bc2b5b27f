"""Models as data: facts, licences, and downloads from a local server that answers as the hub does."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import re
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

from im3d import model_hub, models
from im3d.commands import models as command
from im3d.errors import CancelledError, DiskError, Im3dError, InputError, ModelError
from im3d.models import find_model, git_blob_hash, installed, licence_accepted, require, sha256_of, verify

COMMIT = "c0ffee" * 6 + "c0de"
WEIGHTS = bytes(range(256)) * 400


class Hub:
    """A model hub on 127.0.0.1 with the files of one repository.

    Attributes:
        files: Content by path. Paths ending in .json are kept as git blobs, others as large files.
        stated: Hashes to state instead of the true ones.
        cut_at: Bytes after which the next transfer breaks off, once.
        ranges: Whether requests for the rest of a file get the rest; some caches send all of it.
        token: What a request for a file must bear, or None.
        refused: Status for requests that bear another token.
        requests: (method, path, Range or None, Authorization or None) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stated: dict[str, str] = {}
        self.cut_at: int | None = None
        self.ranges = True
        self.token: str | None = None
        self.refused = 403
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def transfers(self) -> list[tuple[str, str | None]]:
        """(path, Range) of the requests for files."""
        return [(path, span) for _, path, span, _ in self.requests if "/resolve/" in path]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        authorization = handler.headers.get("Authorization")
        self.requests.append(("GET", handler.path, handler.headers.get("Range"), authorization))
        path = urlsplit(handler.path).path
        if path.startswith("/api/models/"):
            self._send(handler, 200, json.dumps(self.listing()).encode(), {"Content-Type": "application/json"})
        elif self.token is not None and authorization != f"Bearer {self.token}":
            status = 401 if authorization is None else self.refused
            self._send(handler, status, b"", {"X-Error-Code": "GatedRepo"})
        elif (file := path.partition(f"/resolve/{COMMIT}/")[2]) in self.files:
            self._transfer(handler, self.files[file])
        else:
            self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if not path.endswith(".json"):
                sha = self.stated.get(path, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return {"_id": "1", "id": "any/thing", "sha": COMMIT, "siblings": siblings, "private": False}

    def _transfer(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        span = handler.headers.get("Range", "bytes=0-") if self.ranges else "bytes=0-"
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])  # type: ignore[index]
        body = content[start:]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if self.cut_at is not None:
            sent, self.cut_at = body[: self.cut_at], None
            handler.close_connection = True
        else:
            sent = body
        self._send(handler, 206 if start else 200, sent, headers, length=len(body))

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IM3D_HOME", str(tmp_path / "home"))
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 8192)
    hub.files = {"sv3d_u.safetensors": WEIGHTS, "README.md": b"not wanted"}
    # Other bytes than the published ones; what a published hash does is shown on IS-Net's.
    monkeypatch.delitem(find_model("sv3d_u").sha256, "sv3d_u.safetensors")
    yield hub
    huggingface_hub.close_session()
    hub.close()


def accepted(name: str) -> str:
    models.accept_licence(name)
    return name


def parts(name: str) -> list[Path]:
    return list(find_model(name).folder.rglob("*.part"))


class TestFacts:
    def test_every_entry_is_complete_and_sound(self) -> None:
        for model in models.models().values():
            assert re.fullmatch(r"[\w-]+/[\w.-]+", model.repository)
            assert model.purpose in {"orbit", "image", "mask"}
            assert model.commercial in {"yes", "no", "conditions"}
            assert model.licence_url.startswith("https://")
            assert model.bytes > 10**8
            assert 1 <= model.vram_gb <= 24
            assert model.files
            for path, digest in model.sha256.items():
                assert model.wants(path)
                assert re.fullmatch(r"[0-9a-f]{64}", digest)

    def test_no_wanted_file_is_a_pickle_except_isnets(self) -> None:
        pickles = {
            m.name for m in models.models().values() if any(f.endswith((".pth", ".ckpt", ".bin")) for f in m.files)
        }
        assert pickles == {"isnet"}

    def test_unknown_names_are_refused_with_the_known_ones(self, home: Path) -> None:
        with pytest.raises(InputError, match=r"Known models: sv3d_p, sv3d_u"):
            require("sv4d")

    def test_a_missing_model_names_the_command_and_the_size(self, home: Path) -> None:
        with pytest.raises(ModelError) as caught:
            require("sv3d_p")
        assert "im3d models download sv3d_p (9.4 GB)" in caught.value.hint
        assert "https://huggingface.co/stabilityai/sv3d" in caught.value.hint
        assert caught.value.exit_status == 3

    def test_the_git_blob_hash_is_gits(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"what is up, doc?")
        assert git_blob_hash(tmp_path / "f") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"

    @pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (177e6, "177 MB"), (9.37e9, "9.4 GB")])
    def test_sizes(self, count: float, text: str) -> None:
        assert models.human_size(count) == text


class TestLicence:
    def test_nothing_is_asked_of_the_hub_before_it_is_accepted(self, hub: Hub) -> None:
        with pytest.raises(ModelError, match=r"im3d models licence sv3d_u --accept"):
            model_hub.download("sv3d_u")
        assert hub.requests == []

    def test_it_is_accepted_once_for_each_model(self, hub: Hub) -> None:
        accepted("sv3d_u")
        assert licence_accepted("sv3d_u")
        assert not licence_accepted("sv3d_p")
        accepted("isnet")
        assert licence_accepted("sv3d_u")

    def test_a_changed_licence_must_be_accepted_again(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        accepted("isnet")
        changed = {**models.models(), "isnet": models.Model(**{**vars(find_model("isnet")), "licence": "Another"})}
        monkeypatch.setattr(models, "models", lambda: changed)
        assert not licence_accepted("isnet")

    def test_a_damaged_record_means_not_accepted(self, home: Path) -> None:
        accepted("isnet")
        (home / "models/licences.json").write_text("[1")
        assert not licence_accepted("isnet")


class TestDownload:
    def test_it_arrives_whole_and_is_recorded(self, hub: Hub) -> None:
        steps: list[tuple[int, int]] = []
        folder = model_hub.download(accepted("sv3d_u"), lambda step, of, _=None: steps.append((step, of)))
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS
        assert [p for p, _ in hub.transfers] == [f"/stabilityai/sv3d/resolve/{COMMIT}/sv3d_u.safetensors"]
        record = json.loads((folder / "installed.json").read_text())
        assert record["revision"] == COMMIT
        assert record["files"] == [
            {
                "path": "sv3d_u.safetensors",
                "bytes": len(WEIGHTS),
                "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
                "checked": "hub",
            }
        ]
        assert require("sv3d_u") == installed("sv3d_u") == folder
        assert verify("sv3d_u") == []
        assert steps[-1] == (1, 1)

    def test_a_second_call_and_everything_after_work_without_the_hub(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model_hub.download(accepted("sv3d_u"))
        seen = len(hub.requests)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        model_hub.download("sv3d_u")
        require("sv3d_u")
        verify("sv3d_u")
        assert len(hub.requests) == seen

    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
    def test_offline_says_so_and_asks_nobody(self, variable: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(variable, "1")
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
            model_hub.download(accepted("sv3d_u"))
        assert hub.requests == []

    def test_a_cut_connection_is_continued_where_it_broke(self, hub: Hub) -> None:
        hub.cut_at = 40_000
        folder = model_hub.download(accepted("sv3d_u"))
        (_, first), (_, second) = hub.transfers
        assert first is None
        assert 0 < int(str(second).removeprefix("bytes=").removesuffix("-")) <= 40_000
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_a_stopped_download_goes_on_in_the_next_call(self, hub: Hub) -> None:
        calls = 0

        def stop_at_the_third(step: int, steps: int, preview: object = None) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise CancelledError("Stopped.")

        with pytest.raises(CancelledError):
            model_hub.download(accepted("sv3d_u"), stop_at_the_third)
        (part,) = parts("sv3d_u")
        had = part.stat().st_size
        assert part.read_bytes() == WEIGHTS[:had]
        assert 0 < had < len(WEIGHTS)
        assert installed("sv3d_u") is None

        folder = model_hub.download("sv3d_u")
        assert hub.transfers[-1][1] == f"bytes={had}-"
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS
        assert parts("sv3d_u") == []

    def test_a_server_that_sends_everything_again_does_no_harm(self, hub: Hub) -> None:
        hub.cut_at, hub.ranges = 40_000, False
        folder = model_hub.download(accepted("sv3d_u"))
        assert [span is None for _, span in hub.transfers] == [True, False]
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_a_disk_that_fills_up_on_the_way_is_explained(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        write = model_hub._PartFile.write

        def fill(self: Any, data: Any) -> int:
            if self.tell() > 30_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, data)

        with monkeypatch.context() as patch:
            patch.setattr(model_hub._PartFile, "write", fill)
            with pytest.raises(DiskError, match="disk is full"):
                model_hub.download(accepted("sv3d_u"))
        (part,) = parts("sv3d_u")
        assert part.read_bytes() == WEIGHTS[: part.stat().st_size]
        folder = model_hub.download("sv3d_u")
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_a_wrong_hash_is_refused_and_removed(self, hub: Hub) -> None:
        hub.stated["sv3d_u.safetensors"] = "0" * 64
        with pytest.raises(ModelError, match="expected hash and was removed"):
            model_hub.download(accepted("sv3d_u"))
        assert [p.name for p in find_model("sv3d_u").folder.iterdir() if p.suffix == ".safetensors"] == []
        assert parts("sv3d_u") == []
        assert installed("sv3d_u") is None

    def test_the_published_hash_rules_over_the_hubs(self, hub: Hub) -> None:
        hub.files = {"isnet-general-use.pth": b"not the weights, but honestly listed"}
        with pytest.raises(ModelError, match=r"isnet-general-use\.pth of isnet does not have the expected hash"):
            model_hub.download(accepted("isnet"))
        assert not (find_model("isnet").folder / "isnet-general-use.pth").exists()

    def test_small_files_are_checked_by_their_git_hash(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        names = (
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/vocab.json",
        )
        hub.files = {name: name.encode() for name in names}
        hub.files |= {
            "transformer/model.safetensors": WEIGHTS,
            "vae/config.json": b"{}",
            "flux-2-klein-4b.safetensors": b"0",
        }
        folder = model_hub.download(accepted("flux2_klein"))
        assert (folder / "tokenizer/vocab.json").read_bytes() == b"tokenizer/vocab.json"
        assert not (folder / "flux-2-klein-4b.safetensors").exists()
        (folder / "installed.json").unlink()
        honest = hub.listing()
        honest["siblings"][0]["blobId"] = "f" * 40
        monkeypatch.setattr(hub, "listing", lambda: honest)
        with pytest.raises(ModelError, match=r"model_index\.json of flux2_klein"):
            model_hub.download("flux2_klein")

    def test_a_repository_without_the_files_is_explained(self, hub: Hub) -> None:
        hub.files = {"README.md": b""}
        with pytest.raises(ModelError, match=r"no longer holds sv3d_u\.safetensors"):
            model_hub.download(accepted("sv3d_u"))

    def test_no_space_is_noticed_before_the_first_byte(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(model_hub.shutil, "disk_usage", lambda _: usage(10**6, 0, len(WEIGHTS) - 1))
        with pytest.raises(DiskError, match="needs 102 kB more"):
            model_hub.download(accepted("sv3d_u"))
        assert hub.transfers == []
        monkeypatch.setattr(model_hub.shutil, "disk_usage", lambda _: usage(10**6, 0, len(WEIGHTS)))
        model_hub.download("sv3d_u")

    def test_what_is_there_already_needs_no_space(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.test_a_stopped_download_goes_on_in_the_next_call(hub)
        folder = find_model("sv3d_u").folder
        (folder / "installed.json").unlink()
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(model_hub.shutil, "disk_usage", lambda _: usage(10**6, 0, 0))
        before = len(hub.transfers)
        assert model_hub.download("sv3d_u") == folder
        assert len(hub.transfers) == before

    def test_without_a_login_the_page_to_visit_is_named(self, hub: Hub) -> None:
        hub.token = "good"
        with pytest.raises(ModelError, match="asks for a login") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert "https://huggingface.co/stabilityai/sv3d" in caught.value.hint
        assert "hf auth login" in caught.value.hint

    def test_without_consent_at_the_hub_the_page_to_visit_is_named(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.token = "good"
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        with pytest.raises(ModelError, match="may not read sv3d_u yet") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert "https://huggingface.co/stabilityai/sv3d" in caught.value.hint

    def test_the_token_of_the_environment_is_used(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.token = "hf_good"
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        model_hub.download(accepted("sv3d_u"))
        assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_good"}

    def test_the_token_of_the_hubs_login_is_used(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text("hf_of_the_login")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        hub.token = "hf_of_the_login"
        model_hub.download(accepted("sv3d_u"))
        assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_of_the_login"}

    def test_a_hub_without_the_model_is_explained(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere")
        with pytest.raises(ModelError, match="has no stabilityai/sv3d") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert "HF_ENDPOINT" in caught.value.hint

    def test_an_unreachable_hub_is_explained(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError, match=r"The hub at http://127\.0\.0\.1:9 cannot be reached") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert "HTTPS_PROXY" in caught.value.hint

    def test_it_goes_through_a_proxy(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
        monkeypatch.setenv("HTTP_PROXY", hub.url)
        huggingface_hub.close_session()
        folder = model_hub.download(accepted("sv3d_u"))
        assert len(hub.requests) == 2
        assert all(path.startswith("http://hub.invalid/") for _, path, *_ in hub.requests)
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_two_processes_do_not_write_the_same_file(self, hub: Hub) -> None:
        from filelock import FileLock

        folder = find_model(accepted("sv3d_u")).folder
        folder.mkdir(parents=True)
        with FileLock(folder / ".lock"), pytest.raises(InputError, match="Another process is installing"):
            model_hub.download("sv3d_u")


class TestVerify:
    def test_a_changed_file_of_the_same_size_is_found(self, hub: Hub) -> None:
        folder = model_hub.download(accepted("sv3d_u"))
        with open(folder / "sv3d_u.safetensors", "r+b") as file:
            file.seek(5000)
            file.write(b"\xff\x00")
        assert installed("sv3d_u") == folder
        assert verify("sv3d_u") == ["sv3d_u.safetensors differs from what was installed."]

    def test_a_missing_or_short_file_means_not_installed(self, hub: Hub) -> None:
        folder = model_hub.download(accepted("sv3d_u"))
        (folder / "sv3d_u.safetensors").write_bytes(WEIGHTS[:-1])
        assert installed("sv3d_u") is None
        (folder / "sv3d_u.safetensors").unlink()
        assert verify("sv3d_u") == ["sv3d_u.safetensors is missing."]

    def test_nothing_installed(self, home: Path) -> None:
        with pytest.raises(ModelError, match="is not installed"):
            verify("sv3d_u")


class TestLocalFiles:
    def test_a_file_of_the_right_hash_is_linked_not_copied(self, hub: Hub, tmp_path: Path) -> None:
        mine = tmp_path / "renamed.safetensors"
        mine.write_bytes(WEIGHTS)
        folder = model_hub.install_local(accepted("sv3d_u"), mine)
        assert (folder / "sv3d_u.safetensors").samefile(mine)
        assert models.installed_files(folder)[0].checked == "hub"
        assert hub.transfers == []

    def test_a_wrong_file_is_refused_and_left_alone(self, hub: Hub, tmp_path: Path) -> None:
        mine = tmp_path / "sv3d_u.safetensors"
        mine.write_bytes(WEIGHTS[::-1])
        with pytest.raises(ModelError, match=r"sv3d_u\.safetensors is not the published"):
            model_hub.install_local(accepted("sv3d_u"), mine)
        assert mine.read_bytes() == WEIGHTS[::-1]
        assert installed("sv3d_u") is None

    def test_offline_it_is_recorded_as_unchecked(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/sv3d_p.safetensors").write_bytes(WEIGHTS)
        folder = model_hub.install_local(accepted("sv3d_p"), tmp_path / "mine")
        assert models.installed_files(folder)[0].checked == "nothing"
        assert sha256_of(folder / "sv3d_p.safetensors") == hashlib.sha256(WEIGHTS).hexdigest()

    def test_a_folder_is_taken_with_the_files_that_belong_to_the_model(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        wanted = {
            "model_index.json",
            *(f"{p}/config.json" for p in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")),
        }
        mine = tmp_path / "mine"
        for name in (*wanted, "flux-2-klein-4b.safetensors", "assets/teaser.png"):
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_text(name)
        folder = model_hub.install_local(accepted("flux2_klein"), mine)
        assert {f.path for f in models.installed_files(folder)} == wanted
        assert require("flux2_klein") == folder
        assert verify("flux2_klein") == []

    def test_a_path_that_is_not_there_is_said_as_such(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            model_hub.install_local(accepted("isnet"), tmp_path / "none")

    def test_an_incomplete_folder_is_refused(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(InputError, match=r"does not hold scheduler/\*, text_encoder/\*"):
            model_hub.install_local(accepted("flux2_klein"), tmp_path)


class TestCommand:
    def run(self, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        command.configure(parser)
        return command.run(parser.parse_args(list(arguments)))

    def test_list_tells_everything(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("list", "--json") == 0
        facts = {m["name"]: m for m in json.loads(capsys.readouterr().out)["models"]}
        assert set(facts) == set(models.models())
        assert facts["sv3d_p"]["installed"] is False
        assert facts["sv3d_p"]["gated"] is True
        assert self.run("list") == 0
        assert re.search(r"sv3d_u +orbit +9\.4 GB +8 GB +no +no ", capsys.readouterr().out)

    def test_download_shows_the_licence_and_needs_a_yes(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ModelError, match="has not been accepted"):
            self.run("download", "sv3d_u")
        said = capsys.readouterr().err
        assert "https://huggingface.co/stabilityai/sv3d/blob/main/LICENSE.md" in said
        assert "commercial use: not allowed" in said
        assert hub.requests == []
        assert self.run("download", "sv3d_u", "--accept-licence", "--json") == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["models"][0]["installed"] is True
        assert self.run("verify") == 0
        assert "sv3d_u: unchanged" in capsys.readouterr().out

    def test_one_path_is_one_model(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="files of one model"):
            self.run("download", "sdxl", "isnet", "--from", str(tmp_path), "--accept-licence")
        with pytest.raises(InputError, match="does not exist"):
            self.run("download", "isnet", "--from", str(tmp_path / "none"), "--accept-licence")
        # Nothing was accepted for a request that could not be carried out.
        assert not licence_accepted("isnet")

    def test_verify_says_when_there_is_nothing_to_read(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("verify") == 0
        assert "No model is installed" in capsys.readouterr().out
        assert self.run("verify", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"status": "done", "verified": []}

    def test_licence_can_be_accepted_beforehand(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("licence", "sv3d_u") == 0
        assert re.search(r"accepted: +no", capsys.readouterr().out)
        assert self.run("licence", "sv3d_u", "--accept") == 0
        assert self.run("download", "sv3d_u") == 0
        assert "is installed in" in capsys.readouterr().out

    def test_verify_fails_on_damage(self, hub: Hub) -> None:
        self.run("download", "sv3d_u", "--accept-licence")
        (find_model("sv3d_u").folder / "sv3d_u.safetensors").write_bytes(WEIGHTS[::-1])
        with pytest.raises(Im3dError, match="sv3d_u is damaged") as caught:
            self.run("verify")
        assert caught.value.exit_status == 3
