"""Exactly-once and order for one client in one shard (RIFL: Lee et al., SOSP 2015, with the shard as the unit).

A client numbers its commands per shard and says in every call below which number it lacks no answer (its floor). The
window remembers, at or above that floor, what became of every number that arrived:

    unknown --admit--> PENDING --answer with effect-------> RECORDED  (in a record; durable once its ticket commits)
                          |   `--answer without effect----> REMEMBERED (in memory; rides in the client's next record)
                          |   `--query answered-----------> READ       (a repeat simply reads again)
                          `--bounced (mailbox full)-------> unknown

What is below the floor is forgotten: a late copy of it is dropped, also by the next owner, because every record carries
the floor. So the memory is bounded by the client's window, whatever the client does; in bytes all windows of a shard
count together, and at the host's bound (intake.py) only a client's lowest number is let in. Pure: no clock, no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from ..persistence.records import ClientRow, Record, RecordedReply, is_stream

C = TypeVar("C")


class Verdict(enum.Enum):
    NEW = enum.auto()
    BELOW_FLOOR = enum.auto()
    """The client has its answer, or gave the number up: drop the copy."""
    PENDING = enum.auto()
    """Queued or running: the answer will go to where the newest copy came from."""
    ANSWERED = enum.auto()
    """Known: give the same reply again."""
    OUT_OF_ORDER = enum.auto()
    """An earlier command of this client to the same entity has not arrived here."""
    BEYOND_WINDOW = enum.auto()
    """Further ahead of the floor than it may be. A client's fault. A stream's not: whoever took its shard over does not
    know what was delivered above the floor, and tries again when the floor has moved."""


class Known(msgspec.Struct, eq=False, gc=False):
    """An answered number. `ticket`: the commit that its reply waits for, whoever asks: of its own record, or of what it
    saw when it has none (0: nothing)."""

    reply: RecordedReply
    ticket: int


KNOWN_BYTES = 300
"""What a known answer costs beside its payload: two objects and a place in a dictionary."""


class Replies:
    """What the windows of one shard remember."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


_READ = object()
"""Stands for an answered query: known as to order, but a repeat reads again."""


class Window(Generic[C]):
    """`C` is the host's pending command."""

    __slots__ = ("_dense", "_entries", "_remembered", "_replies", "floor", "generation")

    def __init__(self, floor: int = 1, *, dense: bool = True, replies: Replies | None = None) -> None:
        """`dense`: numbers are given without gaps, so that a width bounds them. Those of a stream of messages have
        gaps; there the width bounds how many are remembered. `replies`: the shard's account."""
        self._replies = replies or Replies()
        self.floor = floor
        self.generation = 0
        """Of a stream: the epoch at which its sender owns its shard. Copies of a former owner are dropped."""
        self._dense = dense
        self._entries: dict[int, C | Known | object] = {}
        self._remembered: dict[int, Known] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def raise_floor(self, floor: int) -> None:
        """Forget everything below `floor`. A pending number below it is dropped when its turn comes."""
        if floor <= self.floor:
            return
        entries = self._entries
        if floor - self.floor <= len(entries):
            for number in range(self.floor, floor):
                self._gone(entries.pop(number, None))
        else:  # a jump, or a lie: never loop over what is not there
            for number in [number for number in entries if number < floor]:
                self._gone(entries.pop(number))
        if self._remembered:
            for number in [number for number in self._remembered if number < floor]:
                del self._remembered[number]
        self.floor = floor

    def admit(self, number: int, prev: int, width: int) -> Verdict:
        """What to do with a call that just arrived (its floor already taken in)."""
        if number < self.floor:
            return Verdict.BELOW_FLOOR
        entries = self._entries
        entry = entries.get(number)
        if entry is None and self._is_beyond(number, width):
            return Verdict.BEYOND_WINDOW
        if entry is not None and entry is not _READ:
            return Verdict.ANSWERED if type(entry) is Known else Verdict.PENDING
        if prev >= self.floor and prev not in entries:
            return Verdict.OUT_OF_ORDER
        return Verdict.NEW

    def _is_beyond(self, number: int, width: int) -> bool:
        if self._dense:
            return number >= self.floor + width
        # the oldest one is always let in: without it the floor could never move on
        return len(self._entries) >= width and number != self.floor

    def begin(self, number: int, command: C) -> None:
        self._entries[number] = command

    def pending(self, number: int) -> C:
        """The command behind a PENDING verdict."""
        return self._entries[number]  # type: ignore[return-value]  # PENDING: neither Known nor _READ

    def known(self, number: int) -> Known:
        """The answer behind an ANSWERED verdict."""
        entry = self._entries[number]
        assert type(entry) is Known
        return entry

    def bounce(self, number: int) -> None:
        """The command was refused a place and did not run: as if it had never come."""
        self._entries.pop(number, None)

    def record(self, number: int, reply: RecordedReply, ticket: int) -> None:
        """Its reply stands in the record with that ticket."""
        if number >= self.floor:
            self._know(number, reply, ticket)

    def remember(self, number: int, reply: RecordedReply, ticket: int) -> None:
        """Answered without effect, from what is durable once `ticket` is committed: kept in memory until the floor
        passes it or a record takes it along."""
        if number >= self.floor:
            self._remembered[number] = self._know(number, reply, ticket)

    def _know(self, number: int, reply: RecordedReply, ticket: int) -> Known:
        known = Known(reply, ticket)
        self._gone(self._entries.get(number))
        self._entries[number] = known
        self._replies.bytes += KNOWN_BYTES + len(reply.payload)
        return known

    def _gone(self, entry: C | Known | object | None) -> None:
        """It leaves its place."""
        if type(entry) is Known:
            self._replies.bytes -= KNOWN_BYTES + len(entry.reply.payload)

    def forget(self) -> None:
        """Its client's session expired."""
        for entry in self._entries.values():
            self._gone(entry)
        self._entries.clear()
        self._remembered.clear()

    def read(self, number: int) -> None:
        """A query was answered."""
        if number >= self.floor:
            self._entries[number] = _READ

    def take_riders(self, ticket: int) -> tuple[tuple[int, RecordedReply], ...]:
        """The remembered replies, to be written with the client's next record, whose ticket this is."""
        if not self._remembered:
            return ()
        riders = tuple((number, known.reply) for number, known in self._remembered.items())
        for known in self._remembered.values():
            known.ticket = ticket
        self._remembered.clear()
        return riders

    def lay(self, record: Record) -> None:
        """Take in a committed record of this client (recovery): its floor, its reply and its riders."""
        self.raise_floor(record.floor)
        for number, reply in record.riders:
            self.record(number, reply, 0)
        if record.reply is not None and record.number:
            self.record(record.number, record.reply, 0)

    def recorded(self, committed: int) -> Iterator[tuple[int, RecordedReply]]:
        """The replies that are durable once `committed` is: what the tables are to hold."""
        for number, entry in self._entries.items():
            if type(entry) is Known and number not in self._remembered and entry.ticket <= committed:
                yield number, entry.reply

    def row(self, client: int, committed: int) -> ClientRow:
        return ClientRow(client, self.floor, tuple(self.recorded(committed)))

    @classmethod
    def from_row(cls, row: ClientRow, replies: Replies | None = None) -> Window[C]:
        window: Window[C] = cls(row.floor, dense=not is_stream(row.client), replies=replies)
        for number, reply in row.replies:
            window.record(number, reply, 0)
        return window
