"""What one shard has committed but its tables do not show yet: read before them, and what a checkpoint writes.

    committed record --lay--> dirty --freeze--> frozen --(checkpoint written)--> gone

A checkpoint freezes what there is and works from that, while new commits gather in a fresh dirty set; if it stops half
way, the same frozen set is written again. Reading an entity lays frozen, then dirty, over its row in the tables. Only
committed records get here: an activation holds staged effects and is never a source.

Of pending work (mailbox entries, messages, timers, dead letters) only what is still pending is kept: what began and
ended within one dirty set leaves no trace and never reaches the tables; of what began before there is the word that it
ended. After a takeover that word is always kept (`half_written`). Pending work is read through pending.py.
"""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from ..actors.stored import StoredEntity, StoredEvent, StoredMessage, StoredState, StoredTimer
from .records import Commit, DeadLetterRow, Delivery, EntityRow, MailboxRow, NamedReply, Record, outbox_number

EntityKey = tuple[str, str]
"""(kind, ID)"""
RECORD_BYTES = 200
"""What a record costs in memory and log beside its payloads, roughly: for bounds, not for bills."""
ITEM_BYTES = 100
"""The same for a mailbox entry, a message, a timer or a dead letter in it."""

Item = TypeVar("Item")


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
    if record.delivery is not None:
        size += _delivery_bytes(record.delivery)
    return size


def _delivery_bytes(delivery: Delivery) -> int:
    size = 8 * (len(delivery.delivered) + len(delivery.timers_gone) + 2 * len(delivery.attempts))
    if delivery.accepted is not None:
        size += ITEM_BYTES + len(delivery.accepted.arguments)
    for message in delivery.outbox:
        size += ITEM_BYTES + len(message.arguments)
    for timer in delivery.timers:
        size += ITEM_BYTES + len(timer.arguments)
    if delivery.dead is not None:
        size += ITEM_BYTES + len(delivery.dead.arguments) + len(delivery.dead.error)
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
    """Committed, not in the tables.

    Of an item of pending work it holds the last word: as it is, or None when it ended and a row of it may stand in the
    tables.
    """

    __slots__ = (
        "attempts",
        "bytes",
        "clients",
        "commits",
        "entities",
        "half_written",
        "later",
        "letters",
        "mailbox",
        "named",
        "outbox",
        "records",
        "timers",
        "timers_cleared",
    )

    def __init__(self, *, half_written: bool = False) -> None:
        self.half_written = half_written
        """A former owner's checkpoint may have stopped half way through these very records, with rows written of what
        ended later among them: then the word that it ended is kept too."""
        self.later: Dirty | None = None
        """The set that took over when this one was frozen."""
        self.entities: dict[EntityKey, EntityDelta] = {}
        self.commits: list[Commit] = []
        """History of event-sourced entities, in order of position."""
        self.clients: set[int] = set()
        """Clients whose row changed."""
        self.named: dict[tuple[str, str, str], NamedReply] = {}
        self.mailbox: dict[EntityKey, dict[int, MailboxRow | None]] = {}
        self.attempts: dict[tuple[str, str, int], int] = {}
        """(kind, ID, entry) -> attempts, of entries that were accepted before this set began."""
        self.outbox: dict[int, StoredMessage | None] = {}
        self.timers: dict[EntityKey, dict[str, StoredTimer | None]] = {}
        self.timers_cleared: set[EntityKey] = set()
        """Entities that lost all their timers; what stands in `timers` came after that."""
        self.letters: dict[int, DeadLetterRow | None] = {}
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
        if record.deleted or record.delivery is not None:
            self._lay_pending(record)

    def _lay_pending(self, record: Record) -> None:
        key, position, delivery = (record.kind, record.id), record.position, record.delivery
        if record.deleted:
            self.timers.pop(key, None)
            self.timers_cleared.add(key)
        if delivery is None:
            return
        if delivery.accepted is not None or delivery.attempts or delivery.done:
            self._lay_mailbox(key, record, delivery)
        for index, message in enumerate(delivery.outbox):
            self.outbox[outbox_number(position, index)] = message
        for number in delivery.delivered:
            self._end(self.outbox, number)
        if delivery.timers or delivery.timers_gone:
            timers = self.timers.setdefault(key, {})
            # A name is used again and again: the tables may hold an earlier timer under it, also when this set has one.
            timers.update(dict.fromkeys(delivery.timers_gone))
            timers.update((timer.name, timer) for timer in delivery.timers)
        if delivery.dead is not None:
            self.letters[position] = DeadLetterRow(position, record.kind, record.id, delivery.dead)
        if delivery.letter_gone:
            self._end(self.letters, delivery.letter_gone)

    def _lay_mailbox(self, key: EntityKey, record: Record, delivery: Delivery) -> None:
        kind, id = key
        entries = self.mailbox.setdefault(key, {})
        if delivery.accepted is not None:
            position = record.position
            entries[position] = MailboxRow(kind, id, position, delivery.accepted, time_ms=record.time_ms)
        for entry, attempts in delivery.attempts:
            row = entries.get(entry)
            if row is not None:
                entries[entry] = replace(row, attempts=attempts)
            else:
                self.attempts[kind, id, entry] = attempts
        if delivery.done:
            self._end(entries, delivery.done)
            self.attempts.pop((kind, id, delivery.done), None)
        if not entries:
            del self.mailbox[key]

    def _end(self, items: dict[int, Item | None], number: int) -> None:
        """An item is pending no more. Its number is never used again, so of one that began in this set no row exists,
        unless somebody else began to write this set."""
        if self.half_written or items.get(number) is None:
            items[number] = None
        else:
            del items[number]


class Overlay:
    """The dirty and the frozen set of one shard."""

    __slots__ = ("dirty", "frozen", "frozen_position")

    def __init__(self, *, half_written: bool = False) -> None:
        """`half_written`: of the first dirty set, see there."""
        self.dirty = Dirty(half_written=half_written)
        self.frozen: Dirty | None = None
        self.frozen_position = 0

    def lay(self, record: Record) -> None:
        """Take in one committed record."""
        self.dirty.lay(record, record_bytes(record))

    def freeze(self, committed_position: int) -> Dirty:
        """Begin a checkpoint, or begin again the one that stopped half way (its `frozen_position` stays)."""
        if self.frozen is None:
            self.frozen = self.dirty
            self.dirty = self.frozen.later = Dirty()
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
