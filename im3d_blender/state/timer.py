"""The timer that keeps the session going: several times a second while something is under way."""

from __future__ import annotations

import traceback

import bpy

from . import backend_state, cutout, memory, session
from .redraw import redraw, show_percent

ACTIVE_S = 0.1  # between two ticks while something is under way
IDLE_S = 1.0


def tick() -> float:
    """Advances everything; returns the seconds to the next tick. It must not raise: Blender would drop the timer."""
    context = bpy.context
    try:
        known = session.ensure(context)
        session.advance(context, known)
        before = backend_state.state.installed
        if backend_state.advance(context) | cutout.advance(context):
            redraw(context)
        if backend_state.state.installed != before:
            session.backend_installed(context, known)
        show_percent(context, known.running.fraction if known.running is not None else None)
        memory.free_when_idle(context, known)
        return ACTIVE_S if known.is_active or backend_state.is_working() or cutout.is_working() else IDLE_S
    except Exception:
        traceback.print_exc()
        return IDLE_S


def attach() -> None:
    if not bpy.app.background:  # there timers never run
        bpy.app.timers.register(tick, first_interval=ACTIVE_S, persistent=True)


def detach() -> None:
    if bpy.app.timers.is_registered(tick):
        bpy.app.timers.unregister(tick)
