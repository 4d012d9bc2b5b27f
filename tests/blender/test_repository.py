"""The static extension repository, read by Blender's own client from a web server on this machine."""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlparse
from urllib.request import urlopen

import pytest
from blender_process import ROOT

pytestmark = pytest.mark.blender


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("web") / "repository"
    command = [sys.executable, str(ROOT / "tools" / "build_repository.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.strip().splitlines()[-1]) == out / "index.json"
    return out


@pytest.fixture(scope="module")
def address(repository: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(repository))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def client(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Blender's own extension tool, as Blender runs it to fetch and install."""
    sys.path.insert(0, str(ROOT / "tools"))
    tool, _ = importlib.import_module("build_zip").blender_ext()
    return subprocess.run([sys.executable, str(tool), *arguments], capture_output=True, text=True, timeout=60)


def test_blender_installs_from_it(address: str, tmp_path: Path) -> None:
    where = (f"--remote-url={address}/index.json", f"--local-dir={tmp_path}")
    synced = client("sync", *where)
    assert synced.returncode == 0, synced.stdout + synced.stderr
    done = client("install", *where, "--blender-version=4.2.0", "--python-version=3.11.7", "im3d")
    assert done.returncode == 0, done.stdout + done.stderr
    installed = tmp_path / "im3d"
    assert tomllib.loads((installed / "blender_manifest.toml").read_text())["id"] == "im3d"
    for file in ("client/backend.py", "install/steps.py"):
        assert (installed / "im3d_blender" / file).read_bytes() == (ROOT / "im3d_blender" / file).read_bytes()
    locks = {path.name for path in (ROOT / "im3d_blender" / "install" / "locks").iterdir()}
    assert {path.name for path in (installed / "im3d_blender" / "install" / "locks").iterdir()} == locks


def test_blender_refuses_a_zip_that_is_not_the_listed_one(repository: Path, address: str, tmp_path: Path) -> None:
    (archive,) = repository.glob("*.zip")
    whole = archive.read_bytes()
    where = (f"--remote-url={address}/index.json", f"--local-dir={tmp_path}")
    assert client("sync", *where).returncode == 0
    try:
        archive.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        client("install", *where, "--blender-version=4.2.0", "--python-version=3.11.7", "im3d")
    finally:
        archive.write_bytes(whole)
    assert not (tmp_path / "im3d").exists()


def test_the_page_can_be_dragged_into_blender(address: str, repository: Path) -> None:
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attributes if tag == "a" and name == "href" and value)

    with urlopen(f"{address}/index.html", timeout=10) as answer:
        page = answer.read().decode()
    Links().feed(page)
    (link,) = links
    parts, query = urlparse(urljoin(f"{address}/index.html", link)), parse_qs(urlparse(link).query)
    # Blender wants the archive's address to end in .zip, and finds the listing beside it.
    assert parts.path.endswith(".zip")
    assert query["blender_version_min"] == ["4.2.0"]
    with urlopen(urljoin(f"{address}{parts.path}", query["repository"][0]), timeout=10) as answer:
        assert json.load(answer) == json.loads((repository / "index.json").read_text())
    assert not re.search(r"\$\{?\w", page)
