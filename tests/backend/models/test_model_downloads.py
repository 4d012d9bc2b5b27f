"""Downloads of models from a local server that answers as the hub does: cut, refused, damaged, out of space."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import socket
import socketserver
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from hub_server import COMMIT, WEIGHTS, Hub, accepted, parts, unpublished

from im3d.errors import CancelledError, DiskError, InputError, ModelError
from im3d.models import hub as model_hub
from im3d.models.catalog import find_model, installed, require, verify


@contextmanager
def socks_proxy(port: int) -> Iterator[tuple[str, list[bytes]]]:
    """A SOCKS 5 proxy whose every connection goes to a port of this machine: its address, and the hosts asked for."""
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            methods = self.rfile.read(2)[1]
            self.rfile.read(methods)
            self.wfile.write(b"\5\0")
            _, _, _, kind, length = self.rfile.read(5)
            assert kind == 3  # a name: the proxy looks it up
            asked.append(self.rfile.read(length))
            self.rfile.read(2)
            self.wfile.write(b"\5\0\0\1" + bytes(6))
            with socket.create_connection(("127.0.0.1", port)) as there:
                up = threading.Thread(target=self._pump, args=(self.connection, there))
                up.start()
                self._pump(there, self.connection)
                up.join()

        @staticmethod
        def _pump(source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield f"socks5://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


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

    def test_damaged_files_of_the_right_size_are_fetched_again(self, hub: Hub) -> None:
        folder = model_hub.download(accepted("sv3d_u"))
        (folder / "sv3d_u.safetensors").write_bytes(WEIGHTS[::-1])
        assert installed("sv3d_u") == folder  # as far as names and sizes tell
        before = len(hub.transfers)
        assert model_hub.download("sv3d_u") == folder
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS
        assert len(hub.transfers) == before + 1
        assert verify("sv3d_u") == []

    def test_damaged_files_of_ones_own_are_replaced_and_not_written(self, hub: Hub, tmp_path: Path) -> None:
        mine = tmp_path / "mine.safetensors"
        mine.write_bytes(WEIGHTS)
        folder = model_hub.install_local(accepted("sv3d_u"), mine)
        mine.write_bytes(WEIGHTS[::-1])
        model_hub.download("sv3d_u")
        assert mine.read_bytes() == WEIGHTS[::-1]
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_files_that_could_not_be_compared_are_compared_by_the_next_download(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine.safetensors").write_bytes(WEIGHTS[::-1])
        with monkeypatch.context() as offline:
            offline.setenv("HF_HUB_OFFLINE", "1")
            folder = model_hub.install_local(accepted("sv3d_u"), tmp_path / "mine.safetensors")
            assert model_hub.download("sv3d_u") == folder  # nothing better can be had
        model_hub.download("sv3d_u")
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    @pytest.mark.parametrize(
        "path",
        [
            "tokenizer/../../../evil.json",
            "tokenizer/a/../../../../evil.json",
            "tokenizer//evil.json",
            "tokenizer/..\\..\\evil.json",
            "tokenizer/C:evil.json",
            "tokenizer/.hidden.json",
            "tokenizer/e\0vil.json",
            "tokenizer/" + "n" * 300 + ".json",
        ],
    )
    def test_a_mirror_cannot_name_a_file_elsewhere(
        self, path: str, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unpublished("flux2_klein", monkeypatch)
        hub.files = {f"{folder}/config.json": b"{}" for folder in ("scheduler", "text_encoder", "transformer", "vae")}
        hub.files |= {"model_index.json": b"{}", "tokenizer/vocab.json": b"{}", path: b"evil"}
        with pytest.raises(ModelError, match="which no model holds"):
            model_hub.download(accepted("flux2_klein"))
        assert hub.transfers == []
        assert [p for p in home.parent.rglob("*") if "evil" in p.name] == []

    @pytest.mark.parametrize("digest", ["../../../../evil", "", "f" * 39, "F" * 40])
    def test_nor_by_what_it_calls_a_hash(self, digest: str, hub: Hub, home: Path) -> None:
        hub.stated["sv3d_u.safetensors"] = digest
        with pytest.raises(ModelError, match="which no model holds"):
            model_hub.download(accepted("sv3d_u"))
        assert hub.transfers == []

    def test_a_pinned_revision_is_the_one_that_is_fetched(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        unpublished("vgg16", monkeypatch)
        hub.files = {"model.safetensors": WEIGHTS}
        hub.commit = COMMIT
        with pytest.raises(ModelError, match="another revision of timm/vgg16"):
            model_hub.download(accepted("vgg16"))
        assert hub.transfers == []
        hub.commit = None
        folder = model_hub.download("vgg16")
        assert json.loads((folder / "installed.json").read_text())["revision"] == find_model("vgg16").revision
        hub.commit = "../../main"
        with pytest.raises(ModelError, match="names no commit"):
            model_hub.download(accepted("sv3d_u"))

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
        folder = model_hub.download(accepted(unpublished("flux2_klein", monkeypatch)))
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

    def test_without_a_login_the_token_is_asked_for(self, hub: Hub) -> None:
        hub.token = "good"
        with pytest.raises(ModelError, match="requires a Hugging Face account") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert caught.value.remedy == "token sv3d_u"

    def test_without_consent_at_the_hub_the_token_is_asked_for(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.token = "good"
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        with pytest.raises(ModelError, match="has no access to SV3D yet") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert caught.value.remedy == "token sv3d_u"

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

    @pytest.mark.parametrize("beside", ["", "http://127.0.0.1:9"])
    def test_a_socks_proxy_without_its_package_is_explained(
        self, beside: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        importlib.import_module("httpcore2")  # which remembers for good whether the package was there
        monkeypatch.setitem(sys.modules, "socksio", None)
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
        monkeypatch.setenv("HTTPS_PROXY", beside)
        huggingface_hub.close_session()
        with pytest.raises(ModelError, match="SOCKS proxy is set") as caught:
            model_hub.download(accepted("sv3d_u"))
        assert "HTTPS_PROXY" in caught.value.hint

    @pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:9", "http://[::1", "socks4://127.0.0.1:9"])
    def test_a_proxy_that_is_none_is_explained(self, proxy: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", proxy)
        huggingface_hub.close_session()
        with pytest.raises(ModelError, match="The proxy that is set cannot be used"):
            model_hub.download(accepted("sv3d_u"))

    def test_it_goes_through_a_socks_proxy(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("socksio")
        with socks_proxy(hub.server.server_port) as (url, asked):
            monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
            monkeypatch.setenv("ALL_PROXY", url)
            huggingface_hub.close_session()
            folder = model_hub.download(accepted("sv3d_u"))
            huggingface_hub.close_session()
        assert b"hub.invalid" in asked
        assert (folder / "sv3d_u.safetensors").read_bytes() == WEIGHTS

    def test_a_socks_proxy_that_is_none_is_explained(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("socksio")

        class Other(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(100)
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
            monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{server.server_address[1]}")
            huggingface_hub.close_session()
            with pytest.raises(ModelError, match="does not answer as a SOCKS proxy"):
                model_hub.download(accepted("sv3d_u"))
            server.shutdown()

    def test_two_processes_do_not_write_the_same_file(self, hub: Hub) -> None:
        from filelock import FileLock

        folder = find_model(accepted("sv3d_u")).folder
        folder.mkdir(parents=True)
        with FileLock(folder / ".lock"), pytest.raises(InputError, match="Another process is installing"):
            model_hub.download("sv3d_u")
