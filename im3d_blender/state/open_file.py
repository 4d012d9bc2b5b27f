"""Which file is open: jobs belong to the file in which they were requested."""

from __future__ import annotations

import uuid

import bpy

# Changes whenever another file is opened: earlier jobs do not belong into it, unless its path says so.
_document = uuid.uuid4().hex
_path = ""  # of the open file as it was opened or last saved


def document() -> str:
    """Identifies the open file among those that this session had open."""
    return _document


def loaded() -> None:
    """Another file is open."""
    global _document, _path
    _document, _path = uuid.uuid4().hex, bpy.data.filepath


def saved() -> str | None:
    """The open file was saved: the path that it had before, "" for none; None when that has not changed."""
    global _path
    before, _path = _path, bpy.data.filepath
    return before if _path != before else None
