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


class StoredMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A command that an entity sends to another one, from its outbox."""

    kind: str
    id: str
    method: str
    arguments: bytes
    """A MessagePack map by parameter name, checked against the signature when it was staged."""


class StoredTimer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A timer of one entity, under its name. It stands until its last tick is committed, a cancel, or a deletion."""

    name: str
    due_ms: int
    """Wall clock of its next tick."""
    method: str
    arguments: bytes
    every_ms: int = 0
    """Repeats after this; 0: once."""
    catch_up: bool = False
    """Ticks missed meanwhile: True runs each of them, False all of them as one."""
    set_at: int = 0
    """The position of the record that scheduled it; the activation leaves it at 0, the host fills it in. Scheduling
    the name anew gives another one, a tick of a repeating timer keeps it."""
    attempts: int = 0
    """How often the tick at `due_ms` was tried without success."""


class StoredEntity(msgspec.Struct, frozen=True, gc=False):
    """What an activation starts from: a state, and the events after it."""

    seq: int = 0
    """Commits that changed this entity so far; a deleted one goes on counting."""
    state: StoredState | None = None
    """None: no state yet (defaults), deleted, or event-sourced without a snapshot."""
    events: tuple[StoredEvent, ...] = ()
    """In order, after `state`."""
