"""A package index on this machine that serves small wheels, and goes wrong on demand."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import ssl
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CERTIFICATE = Path(__file__).with_name("loopback.pem")  # and its key; for 127.0.0.1 alone
ROOT_CERTIFICATE = Path(__file__).with_name("loopback_root.pem")  # that vouches for it


class PackageIndex:
    """Serves the wheels of a folder under /simple/, over TLS with a certificate that nobody knows if `tls` is set.

    Attributes:
        url: Of the index.
        asked: Paths of all files that were asked for.
        faults: File name → "cut" (half of it, then the line is dropped), "corrupt" (other bytes), "stall" (half of it,
            and nothing more until the index is closed).
    """

    def __init__(self, folder: Path, tls: bool = False) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.faults: dict[str, str] = {}
        self._released = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index._answer(self)

            def do_HEAD(self) -> None:  # uv asks so whether it may read a wheel's description alone
                index._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # who does not know the certificate hangs up

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/simple/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2:
            name = parts[1].replace("-", "_")
            links = [
                f'<a href="/files/{p.name}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">{p.name}</a>'
                for p in sorted(self.folder.glob(f"{name}-*.whl"))
            ]
            self._send(request, f"<html><body>{''.join(links)}</body></html>".encode(), "text/html")
        elif parts[0] == "files" and (self.folder / parts[1]).is_file():
            self.asked.append(parts[1])
            self._send_file(request, (self.folder / parts[1]).read_bytes(), self.faults.get(parts[1], ""))
        else:
            request.send_error(404)

    def _send_file(self, request: BaseHTTPRequestHandler, data: bytes, fault: str) -> None:
        if fault == "corrupt":
            data = data.replace(b"version", b"virtual")[:-1] + b"x"
        if fault not in ("cut", "stall"):
            self._send(request, data, "application/octet-stream")
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2])
        request.wfile.flush()
        if fault == "stall":
            self._released.wait(120)
        request.close_connection = True

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, data: bytes, kind: str) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


def make_wheel(folder: Path, name: str, version: str = "1.0", code: str = "") -> Path:
    """A wheel with one module."""
    files = {f"{name}.py": (code or f"version = {version!r}\n").encode()}
    return _write_wheel(folder / f"{name}-{version}-py3-none-any.whl", name, version, files, "py3-none-any")


def wheel_of_installed(folder: Path, name: str) -> Path:
    """The wheel that an installed package came from, made again from its files."""
    distribution = importlib.metadata.distribution(name)
    tag = next(line.split(": ")[1] for line in (distribution.read_text("WHEEL") or "").splitlines() if "Tag: " in line)
    version, files = distribution.version, {}
    for entry in distribution.files or []:
        path = Path(str(distribution.locate_file(entry)))
        if ".dist-info" in str(entry) or "__pycache__" in str(entry) or not path.is_file():
            continue
        inside = (
            entry.as_posix() if not entry.as_posix().startswith("..") else f"{name}-{version}.data/scripts/{path.name}"
        )
        files[inside] = path.read_bytes()
    return _write_wheel(folder / f"{name}-{version}-{tag}.whl", name, version, files, tag)


def _write_wheel(path: Path, name: str, version: str, files: dict[str, bytes], tag: str) -> Path:
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = []
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{inside},sha256={digest},{len(data)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return path


def lock_of(*wheels: Path) -> str:
    """Locked requirements for wheels."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"
