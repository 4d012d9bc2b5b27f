"""Files of clients on other machines: they come and go in pieces, and all live under one folder."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from im3d.errors import InputError
from im3d.protocol import Message, message
from im3d.storage import explained

# Base64 of this stays under the longest line of the protocol with room to spare.
PIECE = 512 << 10


class RemoteFiles:
    """The folder that a remote client's paths are relative to.

    Args:
        root: The folder; nothing outside it is read or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def store(self, path: str, data: str, last: bool) -> None:
        """Appends a piece to a file, which is there after the last one.

        Raises:
            InputError: The path leads out of the folder, or the data is not base64.
            DiskError: The disk is full.
        """
        target = self.inside(path)
        part = target.with_name(target.name + ".part")
        try:
            content = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise InputError(f"A piece of {path} is damaged.", "Send the file again.") from error
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab") as file:
                file.write(content)
            if last:
                os.replace(part, target)

    def pieces(self, path: str) -> Iterator[Message]:
        """The `file` messages of a file; one with null data when there is none.

        Raises:
            InputError: The path leads out of the folder.
        """
        source = self.inside(path)
        if not source.is_file():
            yield message("file", path=path, data=None, last=True)
            return
        with open(source, "rb") as file:
            data = file.read(PIECE)
            while True:
                following = file.read(PIECE)
                yield message("file", path=path, data=base64.b64encode(data).decode(), last=not following)
                if not following:
                    return
                data = following

    def located(self, asked: Message) -> Message:
        """A submit or resume with this machine's paths.

        Raises:
            InputError: A path leads out of the folder.
        """
        found = {**asked, "job": str(self.inside(str(asked["job"])))}
        if isinstance(asked.get("request"), dict):
            request = dict(asked["request"])
            for name in ("image", "views", "mask"):
                if request.get(name):
                    request[name] = str(self.inside(str(request[name])))
            if request.get("blend"):
                raise InputError("A remote job cannot save a .blend.", "Leave it out; Blender imports the mesh.")
            found["request"] = request
        return found

    def relative(self, said: Message) -> Message:
        """An event with paths as the client knows them."""
        changed = dict(said)
        for name in ("path", "log"):
            value = changed.get(name)
            if isinstance(value, str) and value and Path(value).is_relative_to(self.root):
                changed[name] = Path(value).relative_to(self.root).as_posix()
        return changed

    def inside(self, path: str) -> Path:
        """The file that a client means.

        Raises:
            InputError: The path leads out of the folder.
        """
        relative = PurePosixPath(path)
        target = (self.root / relative).resolve()
        if relative.is_absolute() or not path or target == self.root or not target.is_relative_to(self.root):
            raise InputError(f"The path {path} is not one of this session.", "Use paths relative to it.")
        return target
