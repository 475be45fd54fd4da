"""What one shard has committed but its tables do not show yet: read before them, and what a checkpoint writes.

    committed record --lay--> dirty --freeze--> frozen --(checkpoint written)--> gone

A checkpoint freezes what there is and works from that, while new commits gather in a fresh dirty set; if it stops half
way, the same frozen set is written again. Reading an entity lays frozen, then dirty, over its row in the tables. Only
committed records get here: an activation holds staged effects and is never a source.
"""

from __future__ import annotations

from ..actors.stored import StoredEntity, StoredEvent, StoredState
from .records import Commit, EntityRow, NamedReply, Record

EntityKey = tuple[str, str]
"""(kind, ID)"""
RECORD_BYTES = 200
"""What a record costs in memory and log beside its payloads, roughly: for bounds, not for bills."""


def record_bytes(record: Record) -> int:
    size = RECORD_BYTES
    if record.state is not None:
        size += len(record.state.data)
    for event in record.events:
        size += len(event.data)
    if record.reply is not None:
        size += len(record.reply.payload)
    for _, reply in record.riders:
        size += len(reply.payload) + 32
    return size


class EntityDelta:
    """What several commits did to one entity, as one step."""

    __slots__ = ("deleted", "events", "replaces", "seq", "state", "state_seq", "time_ms")

    def __init__(self) -> None:
        self.seq = 0
        self.replaces = False
        """The state before no longer matters."""
        self.state: StoredState | None = None
        self.state_seq = 0
        self.deleted = False
        self.events: list[StoredEvent] = []
        """After `state`, or after the state before."""
        self.time_ms = 0

    def lay(self, record: Record) -> None:
        self.seq = record.seq
        self.time_ms = record.time_ms
        if record.deleted or record.state is not None:
            self.replaces = True
            self.state = None if record.deleted else record.state
            self.state_seq = record.seq
            self.deleted = record.deleted
            self.events = []
        else:
            self.deleted = False
            self.events.extend(record.events)

    def over(self, base: StoredEntity) -> StoredEntity:
        if self.seq <= base.seq:  # the tables already show it (a checkpoint has just ended)
            return base
        if self.replaces:
            return StoredEntity(self.seq, self.state, tuple(self.events))
        return StoredEntity(self.seq, base.state, (*base.events, *self.events))

    def row(self, key: EntityKey) -> EntityRow:
        state_seq = self.state_seq if self.replaces else 0
        return EntityRow(key[0], key[1], self.seq, self.state, state_seq, self.deleted, self.time_ms)


class Dirty:
    """Committed, not in the tables."""

    __slots__ = ("bytes", "clients", "commits", "entities", "named", "records")

    def __init__(self) -> None:
        self.entities: dict[EntityKey, EntityDelta] = {}
        self.commits: list[Commit] = []
        """History of event-sourced entities, in order of position."""
        self.clients: set[int] = set()
        """Clients whose row changed."""
        self.named: dict[tuple[str, str, str], NamedReply] = {}
        self.records = 0
        self.bytes = 0

    def lay(self, record: Record, size: int) -> None:
        self.records += 1
        self.bytes += size
        if record.client:
            self.clients.add(record.client)
        if record.seq:
            key = (record.kind, record.id)
            delta = self.entities.get(key)
            if delta is None:
                delta = self.entities[key] = EntityDelta()
            delta.lay(record)
            if record.events:
                self.commits.append(
                    Commit(record.position, record.kind, record.id, record.seq, record.time_ms, record.events)
                )
        if record.command_id and record.reply is not None:
            named = NamedReply(record.kind, record.id, record.command_id, record.reply, record.time_ms)
            self.named[record.kind, record.id, record.command_id] = named


class Overlay:
    """The dirty and the frozen set of one shard."""

    __slots__ = ("dirty", "frozen", "frozen_position")

    def __init__(self) -> None:
        self.dirty = Dirty()
        self.frozen: Dirty | None = None
        self.frozen_position = 0

    def lay(self, record: Record) -> None:
        """Take in one committed record."""
        self.dirty.lay(record, record_bytes(record))

    def freeze(self, committed_position: int) -> Dirty:
        """Begin a checkpoint, or begin again the one that stopped half way (its `frozen_position` stays)."""
        if self.frozen is None:
            self.frozen, self.dirty = self.dirty, Dirty()
            self.frozen_position = committed_position
        return self.frozen

    def written(self) -> None:
        """The tables show what was frozen."""
        self.frozen = None

    def deltas(self, key: EntityKey) -> list[EntityDelta]:
        """What is to be laid over the entity's row, in order. Take it *before* reading the tables: a checkpoint that
        ends in between moves it over there, and whoever looks the other way round finds it in neither place."""
        layers = (self.dirty,) if self.frozen is None else (self.frozen, self.dirty)
        return [layer.entities[key] for layer in layers if key in layer.entities]
