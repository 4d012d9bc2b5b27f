"""Changed preferences, passed on to whatever depends on them.

`preferences` announces a change without knowing who listens; `session` and `properties` subscribe when the add-on is
enabled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import bpy

Change = Literal["folders", "connection"]
Subscriber = Callable[[bpy.types.Context, Change], None]

_subscribers: list[Subscriber] = []


def subscribe(subscriber: Subscriber) -> None:
    """Calls `subscriber` at every change from now on, after those that subscribed earlier."""
    _subscribers.append(subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    """Stops calling `subscriber`."""
    _subscribers.remove(subscriber)


def announce(context: bpy.types.Context, change: Change) -> None:
    """Tells every subscriber that the folders or the connection to the backend were changed."""
    for subscriber in _subscribers:
        subscriber(context, change)
