"""Exactly-once and order for one client in one shard (RIFL: Lee et al., SOSP 2015, with the shard as the unit).

A client numbers its commands per shard and says in every call below which number it lacks no answer (its floor). The
window remembers, at or above that floor, what became of every number that arrived:

    unknown --admit--> PENDING --answer with effect-------> RECORDED  (in a record; durable once its ticket commits)
                          |   `--answer without effect----> REMEMBERED (in memory; rides in the client's next record)
                          |   `--query answered-----------> READ       (a repeat simply reads again)
                          `--bounced (mailbox full)-------> unknown

What is below the floor is forgotten: a late copy of it is dropped, also by the next owner, because every record carries
the floor. So the memory is bounded by the client's window, whatever the client does. Pure: no clock, no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from ..persistence.records import ClientRow, Record, RecordedReply

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
    """The client ran further ahead of its floor than it may: its fault, the connection is closed."""


class Known(msgspec.Struct, eq=False, gc=False):
    """An answered number. `ticket`: the commit that its reply waits for, whoever asks: of its own record, or of what it
    saw when it has none (0: nothing)."""

    reply: RecordedReply
    ticket: int


_READ = object()
"""Stands for an answered query: known as to order, but a repeat reads again."""


class Window(Generic[C]):
    """`C` is the host's pending command."""

    __slots__ = ("_entries", "_remembered", "floor")

    def __init__(self, floor: int = 1) -> None:
        self.floor = floor
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
                entries.pop(number, None)
        else:  # a jump, or a lie: never loop over what is not there
            for number in [number for number in entries if number < floor]:
                del entries[number]
        if self._remembered:
            for number in [number for number in self._remembered if number < floor]:
                del self._remembered[number]
        self.floor = floor

    def admit(self, number: int, prev: int, width: int) -> Verdict:
        """What to do with a call that just arrived (its floor already taken in)."""
        if number < self.floor:
            return Verdict.BELOW_FLOOR
        if number >= self.floor + width:
            return Verdict.BEYOND_WINDOW
        entries = self._entries
        entry = entries.get(number)
        if entry is not None and entry is not _READ:
            return Verdict.ANSWERED if type(entry) is Known else Verdict.PENDING
        if prev >= self.floor and prev not in entries:
            return Verdict.OUT_OF_ORDER
        return Verdict.NEW

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
            self._entries[number] = Known(reply, ticket)

    def remember(self, number: int, reply: RecordedReply, ticket: int) -> None:
        """Answered without effect, from what is durable once `ticket` is committed: kept in memory until the floor
        passes it or a record takes it along."""
        if number >= self.floor:
            self._entries[number] = self._remembered[number] = Known(reply, ticket)

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
    def from_row(cls, row: ClientRow) -> Window[C]:
        window: Window[C] = cls(row.floor)
        for number, reply in row.replies:
            window.record(number, reply, 0)
        return window
