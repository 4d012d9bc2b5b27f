"""A local server that answers as the model hub does, with what tests of downloads need beside it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from im3d.models import catalog as models
from im3d.models.catalog import find_model

COMMIT = "c0ffee" * 6 + "c0de"
WEIGHTS = bytes(range(256)) * 400


class Hub:
    """A model hub on 127.0.0.1 with the files of one repository.

    Attributes:
        files: Content by path. Paths ending in .json are kept as git blobs, others as large files.
        stated: Hashes to state instead of the true ones.
        commit: The commit to state; None: the one that is asked for, or COMMIT for a branch.
        cut_at: Bytes after which the next transfer breaks off, once.
        ranges: Whether requests for the rest of a file get the rest; some caches send all of it.
        token: What a request for a file must bear, or None.
        refused: Status for requests that bear another token.
        requests: (method, path, Range or None, Authorization or None) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stated: dict[str, str] = {}
        self.commit: str | None = None
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
            revision = path.rpartition("/revision/")[2]
            asked = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else COMMIT
            listing = {**self.listing(), "sha": self.commit or asked}
            self._send(handler, 200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif self.token is not None and authorization != f"Bearer {self.token}":
            status = 401 if authorization is None else self.refused
            self._send(handler, status, b"", {"X-Error-Code": "GatedRepo"})
        elif (file := re.sub(r".*/resolve/[0-9a-f]{40}/", "", path)) in self.files:
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
        return {"_id": "1", "id": "any/thing", "siblings": siblings, "private": False}

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


def accepted(name: str) -> str:
    models.accept_licence(name)
    return name


def unpublished(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose files may be any in this test: no hash of them is published."""
    for path in list(find_model(name).sha256):
        monkeypatch.delitem(find_model(name).sha256, path)
    return name


def parts(name: str) -> list[Path]:
    return list(find_model(name).folder.rglob("*.part"))
