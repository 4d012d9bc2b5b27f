"""Models as data: facts, licences, verification, the user's own files, and the command."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

import pytest
from hub_server import WEIGHTS, Hub, accepted, unpublished

from im3d.cli import models as command
from im3d.errors import Im3dError, InputError, ModelError
from im3d.models import catalog as models, hub as model_hub
from im3d.models.catalog import find_model, git_blob_hash, installed, licence_accepted, require, sha256_of, verify


class TestFacts:
    def test_every_entry_is_complete_and_sound(self) -> None:
        for model in models.models().values():
            assert model.shipped or re.fullmatch(r"[\w-]+/[\w.-]+", model.repository)
            assert model.purpose in {"orbit", "image", "mask", "loss"}
            assert model.commercial in {"yes", "no", "conditions"}
            assert model.licence_url.startswith("https://")
            assert model.bytes > (10**7 if model.shipped else 10**8)
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

    def test_a_missing_model_says_its_size_and_how_to_get_it(self, home: Path) -> None:
        with pytest.raises(ModelError) as caught:
            require("sv3d_p")
        assert "9.4 GB" in caught.value.hint
        assert caught.value.remedy == "download sv3d_p"
        assert caught.value.exit_status == 3

    def test_the_git_blob_hash_is_gits(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"what is up, doc?")
        assert git_blob_hash(tmp_path / "f") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"

    @pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (177e6, "177 MB"), (9.37e9, "9.4 GB")])
    def test_sizes(self, count: float, text: str) -> None:
        assert models.human_size(count) == text


class TestUnreadable:
    @pytest.mark.parametrize("name", [m.name for m in models.models().values() if not m.shipped])
    def test_the_remedy_gets_the_model_again(self, name: str, home: Path) -> None:
        error = models.unreadable(find_model(name).folder / find_model(name).files[0], ValueError("header\nlong"))
        assert error.remedy == f"download {name}"
        assert "is damaged (header)." in error.message

    def test_shipped_weights_and_files_of_ones_own_cannot_be_fetched(self, tmp_path: Path) -> None:
        shipped = models.unreadable(find_model("mini").folder / "config.json")
        assert (shipped.remedy, shipped.hint) == ("", "Install im3d again.")
        assert models.unreadable(tmp_path / "mine.safetensors").remedy == ""


class TestLicence:
    def test_nothing_is_asked_of_the_hub_before_it_is_accepted(self, hub: Hub) -> None:
        with pytest.raises(ModelError, match="has not been accepted") as caught:
            model_hub.download("sv3d_u")
        assert caught.value.remedy == "licence sv3d_u"
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
        folder = model_hub.install_local(accepted(unpublished("flux2_klein", monkeypatch)), mine)
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
