"""When the models that the backend keeps for the next job are dropped, as the preferences say."""

from __future__ import annotations

import time

import bpy

from .preferences import get_preferences
from .session import Session


def free_when_idle(context: bpy.types.Context, session: Session) -> None:
    """Frees the memory when no job has run for so long."""
    preferences = get_preferences(context)
    if session.is_active:
        session.idle_since = time.monotonic()
        return
    if session.idle_since is None or not preferences.free_when_idle:
        return
    if time.monotonic() - session.idle_since >= 60 * preferences.idle_minutes:
        _free(session)


def free_before_render(context: bpy.types.Context, session: Session) -> None:
    """Frees the memory when Blender starts to render, unless a job runs."""
    if not session.is_active and get_preferences(context).free_before_render:
        _free(session)


def _free(session: Session) -> None:
    session.idle_since = None
    session.queue.free_memory()
