"""A job on "another machine" through a real sshd on loopback, and a connection that breaks on the way."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from extension.im3d_blender.client.backend import Backend
from extension.im3d_blender.client.environment import remote_command
from extension.im3d_blender.client.queue import JobQueue
from extension.im3d_blender.client.transfer import Transfer

WORKER = Path(__file__).parents[2] / "support" / "fake_worker.py"
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SIZE = 32 << 20

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs OpenSSH's client and server")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """A host for ssh, with options, whose `im3d` keeps everything under tmp_path/far."""
    assert SSHD is not None
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    serve = (
        "from im3d.service.server import serve; from im3d.shared.paths import home_folder; "
        f"serve([{sys.executable!r}, {str(WORKER)!r}], 0, home_folder() / 'remote')"
    )
    program = tmp_path / "bin" / "im3d"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ "$2" = --files ] && exec "{sys.executable}" -m im3d.cli serve --files\n'
        f'exec "{sys.executable}" -c "{serve}"\n'
    )
    program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/user_key.pub\nPidFile none\n"
        f"SetEnv IM3D_HOME={tmp_path}/far PATH={program.parent}:{os.environ['PATH']}\n"
    )
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    if "listening" not in (line := server.stderr.readline()):
        pytest.skip(f"sshd does not run here: {line}")
    known = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path}/known"
    yield f"{getpass.getuser()}@127.0.0.1 -p {port} -i {tmp_path}/user_key {known}"
    server.terminate()
    server.communicate(timeout=30)


def test_a_job_goes_there_and_comes_home(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(os.urandom(SIZE))
    transfers: list[Transfer] = []
    count = Transfer._count

    def cut_in_the_middle(self: Transfer, amount: int) -> None:
        count(self, amount)
        if self not in transfers and self.moved > SIZE / 2:
            transfers.append(self)
            assert self._process is not None
            self._process.kill()

    monkeypatch.setattr(Transfer, "_count", cut_in_the_middle)
    queue = JobQueue(
        Backend(remote_command(host), tmp_path / "log"),
        tmp_path / "jobs",
        files_command=remote_command(host, "--files"),
    )
    try:
        job = queue.submit({"name": "cup", "prompt": "files", "image": str(picture)})
        end = time.monotonic() + 60
        while job.state in ("waiting", "running"):
            assert time.monotonic() < end, (job.stage, job.failure)
            queue.tick()
            time.sleep(0.005)
    finally:
        queue.close()
    assert (job.failure, job.state) == (None, "done")
    assert (job.folder / "mesh.glb").read_bytes() == picture.read_bytes()
    assert [transfer.kind for transfer in transfers] == ["put", "get"]
    # Whoever begins anew moves half of it twice; what was on its way when the connection broke is little.
    assert SIZE <= transfers[0].moved < 1.3 * SIZE
