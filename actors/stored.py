"""An entity as it is stored: encoded states and events, each with the version of its schema."""

from __future__ import annotations

import msgspec


class StoredEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    name: str
    """The event class's name."""
    version: int
    """1 plus the number of upcasts that lead to the class as it is now."""
    data: bytes
    """A MessagePack map by field name."""


class StoredState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entity's encoded state: the newest one (Entity), or a snapshot (EventSourced)."""

    version: int
    data: bytes


class StoredEntity(msgspec.Struct, frozen=True, gc=False):
    """What an activation starts from: a state, and the events after it."""

    seq: int = 0
    """Commits that changed this entity so far; a deleted one goes on counting."""
    state: StoredState | None = None
    """None: no state yet (defaults), deleted, or event-sourced without a snapshot."""
    events: tuple[StoredEvent, ...] = ()
    """In order, after `state`."""
