"""One owned shard in a host's memory: positions, windows, what is committed but not in the tables, its entities.

    RECOVERING --open--> OPEN --release--> RELEASING --written--> gone
                           ^                   |
                           `--- deadline ------'            lost (another owner claimed it): closed at once

`position` counts what is staged, `committed_position` what is durable; both continue from what recovery found.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from ..persistence.overlay import EntityKey, Overlay
from ..persistence.pending import PendingView
from ..persistence.records import ClientRow, Record, is_stream
from ..persistence.recovery import RecoveredShard
from .resident import Pending, Resident
from .timers import ShardTimers
from .window import Known, Replies, Window

if TYPE_CHECKING:
    from ..actors.kind import EntityKind


class Phase(enum.Enum):
    OPEN = enum.auto()
    RELEASING = enum.auto()
    """New calls are answered `Moved`; turns already begun run to their end."""
    CLOSED = enum.auto()
    """Released or lost: nothing of it may be staged any more."""


class OwnedShard:
    def __init__(self, recovered: RecoveredShard, opened_ms: int) -> None:
        """`opened_ms`: the wall clock now."""
        self.shard = recovered.row.shard
        self.epoch = recovered.row.epoch
        self.incarnation = recovered.row.owner
        """This host's."""
        self.former_owners = recovered.row.owners[:-1]
        """Sealed incarnations whose log this shard still needs until its first checkpoint."""
        self.phase = Phase.OPEN
        self.opened_at = recovered.position
        """Mailbox entries up to here were accepted by former owners."""
        self.opened_ms = opened_ms
        """Timers that were due before this may have been fired by former owners."""
        self.position = self.committed_position = recovered.position
        self.ticket = 0
        """Of the newest record staged for this shard."""
        self.overlay: Overlay = recovered.overlay
        self.residents: dict[EntityKey, Resident] = {}
        self.loaded: dict[Resident, None] = {}
        """Those to which commands came since somebody counted: nobody else has any that wait (budget.py)."""
        self.forgotten: set[int] = set()
        """Clients whose rows the next checkpoint deletes."""
        self.busy_s = 0.0
        """Time spent in plain handlers and around all, so far: how much of the host it takes."""
        self._running = 0
        self._quiet = asyncio.Event()
        self.named: dict[tuple[str, str, str], Known] = {}
        """Replies under (kind, ID, command ID) that the tables do not hold yet, staged ones included."""
        self.replies = Replies()
        self.windows: dict[int, Window[Pending]] = {
            row.client: Window.from_row(row, self.replies) for row in recovered.clients
        }
        waiting = PendingView(recovered.overlay)
        pending = recovered.pending
        self.backlog = {(mailbox.kind, mailbox.id): mailbox.entries for mailbox in pending.mailboxes}
        """Entities not in memory that have stored mailbox entries: how many, roughly."""
        self.backlog.update((key, 1) for key in waiting.mailboxes() if key not in self.backlog)
        self.dead_letters = pending.dead_letters
        """How many, roughly; staged ones included."""
        for number, letter in recovered.overlay.dirty.letters.items():
            if letter is not None:
                self.dead_letters += 1
            elif number <= recovered.row.position:  # the tables have it still
                self.dead_letters -= 1
        self.outbox: dict[int, int] = {}
        """Messages on their way: number -> bytes."""
        self.delivered: list[int] = []
        """Messages that their receivers took over, to be acknowledged by the next record."""
        self.timers = ShardTimers()
        for record in recovered.tail:
            if record.client:
                self.window(record.client).lay(record)
            if record.command_id and record.reply is not None:
                self.named[record.kind, record.id, record.command_id] = Known(record.reply, 0)

    def window(self, client: int) -> Window[Pending]:
        window = self.windows.get(client)
        if window is None:
            window = self.windows[client] = Window(dense=not is_stream(client), replies=self.replies)
        return window

    def resident(self, kind: EntityKind, key: EntityKey) -> Resident:
        """The entity in memory; made, cold, if it is not there."""
        resident = self.residents.get(key)
        if resident is None:
            resident = self.residents[key] = Resident(kind, key, self)
            stored = self.backlog.pop(key, 0)
            if stored:
                resident.with_stored(stored)
        return resident

    def turn_waits(self) -> None:
        """One of its entities goes into a turn that may wait (an async handler, a load)."""
        self._running += 1
        self._quiet.clear()

    def turn_ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._quiet.set()

    async def turns_ended(self) -> None:
        """Wait until no turn of its entities is waiting inside: none is when this returns."""
        while self._running:
            await self._quiet.wait()

    def committed(self, record: Record, size: int) -> None:
        """Take in a record that became durable, and its size in bytes."""
        assert record.position == self.committed_position + 1, (self.shard, record.position, self.committed_position)
        self.committed_position = record.position
        self.overlay.dirty.lay(record, size)

    def is_open(self) -> bool:
        """New work may begin in it."""
        return self.phase is Phase.OPEN

    def may_accept(self) -> bool:
        """Commands may still be taken over from their senders: also while a release waits for a turn that may itself
        wait for just that."""
        return self.phase is Phase.OPEN or (self.phase is Phase.RELEASING and self._running > 0)

    def forget(self, clients: set[int]) -> None:
        """Drop what is remembered of clients whose sessions expired; their rows go with the next checkpoint."""
        for client in clients:
            self.windows.pop(client).forget()
        self.forgotten |= clients

    def client_rows(self, clients: set[int], committed_ticket: int) -> tuple[ClientRow, ...]:
        return tuple(self.windows[c].row(c, committed_ticket) for c in sorted(clients) if c in self.windows)

    def written(self, forgotten: tuple[int, ...]) -> None:
        """The frozen part stands in the tables, and the rows of `forgotten` clients are gone from them."""
        self.forgotten.difference_update(forgotten)
        frozen = self.overlay.frozen
        if frozen is not None:
            for key in frozen.named:
                self.named.pop(key, None)
        self.overlay.written()
        self.former_owners = ()
