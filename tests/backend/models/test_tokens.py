"""Gated models: the user's token reaches the hub, from the panel or from his own login, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from extension.im3d_blender.client.environment import child_environment
from hub_server import Hub

TOKEN = "hf_A1b2C3d4E5f6G7h8"


@pytest.fixture
def download(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the panel's download of a gated model in the panel's environment; returns (its answer, all that it said)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def run(token: str = "") -> tuple[dict[str, Any], str]:
        environment = child_environment(tmp_path / "home", token)
        command = [sys.executable, "-m", "im3d.cli", "models", "download", "sv3d_p", "--accept-licence", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        said = done.stdout + done.stderr
        written = [p.read_text("utf-8", "replace") for p in (tmp_path / "home").rglob("*") if p.is_file()]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer, "\n".join([said, *written])

    hub.files = {"sv3d_p.safetensors": b"weights" * 100}
    hub.token = TOKEN
    return run


def shown(hub: Hub) -> set[str | None]:
    """What requests about the model bore; the hub's client asks for its own lists beside them."""
    return {authorization for _, path, _, authorization in hub.requests if "stabilityai" in path}


def test_the_panels_token_opens_a_gated_model(hub: Hub, download: Any) -> None:
    answer, all_that_was_said = download(TOKEN)
    assert answer["status"] == "done", all_that_was_said
    assert shown(hub) == {f"Bearer {TOKEN}"}
    assert TOKEN not in all_that_was_said


def test_the_users_own_login_counts_although_the_caches_are_elsewhere(hub: Hub, download: Any, tmp_path: Path) -> None:
    login = tmp_path / ".cache" / "huggingface" / "token"
    login.parent.mkdir(parents=True)
    login.write_text(TOKEN + "\n")
    assert download()[0]["status"] == "done"
    # The panel's goes first: it was given for this.
    hub.requests.clear()
    assert download("hf_another0000")[0]["status"] == "done"  # it is installed by now: nobody is asked
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "refused", "message"),
    [
        ("", 403, "requires a Hugging Face account"),
        ("hf_wrong00000000", 401, "does not accept your access token"),
        ("hf_wrong00000000", 403, "has no access to SV3D + elevation yet"),
        ("hf_wrong 0000\x7f000", 403, "characters that no token has"),
        ("hf_wrongé0000000", 403, "characters that no token has"),
    ],
)
def test_a_refusal_asks_for_the_token_and_never_says_it(
    token: str, refused: int, message: str, hub: Hub, download: Any
) -> None:
    hub.refused = refused
    answer, all_that_was_said = download(token)
    assert message in answer["message"]
    assert answer["remedy"] == "token sv3d_p"
    assert "hf auth login" in all_that_was_said  # as the terminal's command, beside the sentences
    assert "hf_" not in answer["message"] + answer["hint"]
    assert not token or token not in all_that_was_said


def test_the_token_is_given_to_downloads_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN" not in child_environment(tmp_path)
    assert child_environment(tmp_path, f" {TOKEN}\n")["HF_TOKEN"] == TOKEN
    assert os.environ.get("HF_TOKEN") is None
