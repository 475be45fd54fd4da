"""Group commit: one append is in flight, the next batch fills meanwhile; no linger timer.

    stage --> filling --(append begins)--> in flight --(durable)--> committed(records), answers leave
                ^                              |
                `--- next batch                `-- outcome unknown: the same row again, with the same content, until it
                                                   is there or `Fenced` says that somebody else owns this log's future

Tickets number the staged records; a ticket is committed when `committed >= ticket`. An answer that must wait for a
ticket is handed to `when_committed` and leaves in the order in which it was handed over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.overlay import record_bytes
from ..persistence.records import Record, encode_batch
from ..persistence.spi import Store
from .retries import until_done


def _nothing() -> None:
    pass


def _ignored(full: bool) -> None:
    pass


class CommitPath:
    def __init__(
        self,
        store: Store,
        incarnation: int,
        settings: Settings,
        world: World,
        committed: Callable[[int, list[Record], list[int]], None],
        about_to_take: Callable[[], None] = _nothing,
        full: Callable[[bool], None] = _ignored,
    ) -> None:
        """`committed(n, records, sizes)` is called on the loop after row n became durable, before its answers leave;
        `sizes` in bytes, one per record. `about_to_take` may stage more into the batch that is next.
        `full(True)`: so much is staged and not durable that no further turn should begin, until `full(False)`."""
        self._store = store
        self._incarnation = incarnation
        self._settings = settings
        self._world = world
        self._report = committed
        self._about_to_take = about_to_take
        self._full = full
        self._bytes_max = settings.uncommitted_bytes_max
        self._commands_max = settings.uncommitted_commands_max
        self.is_full = False
        self._filling: list[Record] = []
        self._sizes: list[int] = []
        """Of the records in `_filling`."""
        self._tied: list[bool] = []
        """Of the records in `_filling`: whether it goes into one row with the one before it."""
        self._filling_bytes = 0
        self.uncommitted_bytes = 0
        """Staged and not durable."""
        self._answers: deque[tuple[int, Callable[[], None]]] = deque()
        self._wake: asyncio.Event = asyncio.Event()
        self._room: asyncio.Event = asyncio.Event()
        self._room.set()
        self.staged = 0
        self.committed = 0
        self.n = 0
        """The newest durable row of the log."""

    def stage(self, record: Record, *, tied: bool = False) -> int:
        """Put a record into the next batch; return its ticket. `tied`: it is durable together with the one staged just
        before, or neither is."""
        size = record_bytes(record)
        self._filling.append(record)
        self._tied.append(tied)
        self._sizes.append(size)
        self._filling_bytes += size
        self.uncommitted_bytes += size
        self.staged += 1
        if self.uncommitted_bytes >= self._bytes_max or self.staged - self.committed >= self._commands_max:
            self._measure()
        if len(self._filling) == 1:
            self._wake.set()
        return self.staged

    def when_committed(self, ticket: int, act: Callable[[], None]) -> None:
        """Call `act` once `ticket` is committed: now if it is."""
        if ticket <= self.committed:
            act()
        else:
            self._answers.append((ticket, act))

    async def settled(self, ticket: int) -> None:
        """Wait until `ticket` is committed."""
        if ticket > self.committed:
            done = asyncio.Event()
            self.when_committed(ticket, done.set)
            await done.wait()

    def wake(self) -> None:
        """Take a batch as soon as no append is in flight: `about_to_take` has something for it."""
        self._wake.set()

    def hold(self) -> None:
        """Begin no append until `resume`: what is committed but not in the tables is at its bound."""
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def run(self) -> None:
        """Append batch after batch. Ends only by `Fenced` (or another error that the store raises on purpose)."""
        while True:
            await self._wake.wait()
            await self._room.wait()
            self._wake.clear()
            self._about_to_take()
            if not self._filling:
                continue
            batch, sizes = self._next_batch()
            if self._filling:
                self._wake.set()
            n = self.n + 1
            content = encode_batch(batch, self._incarnation, n)
            # A row that was tried keeps its content for ever: a repeat may find that the first try did arrive.
            await until_done(self._world, partial(self._store.append, self._incarnation, n, content))
            self.n = n
            self.committed += len(batch)
            self.uncommitted_bytes -= sum(sizes)
            if self.is_full:
                self._measure()
            self._report(n, batch, sizes)
            answers = self._answers
            while answers and answers[0][0] <= self.committed:
                answers.popleft()[1]()

    def _measure(self) -> None:
        uncommitted = self.staged - self.committed
        full = self.uncommitted_bytes >= self._bytes_max or uncommitted >= self._commands_max
        if full is not self.is_full:
            self.is_full = full
            self._full(full)

    def _next_batch(self) -> tuple[list[Record], list[int]]:
        """Everything that was staged, up to the bounds; at least one record."""
        batch, sizes = self._filling, self._sizes
        count = min(len(batch), self._settings.batch_commands_max)
        if self._filling_bytes > self._settings.batch_bytes_max:
            size = sizes[0]
            for fitting in range(1, count):
                size += sizes[fitting]
                if size > self._settings.batch_bytes_max:
                    count = fitting
                    break
        while count < len(batch) and self._tied[count]:
            count += 1
        self._filling, self._sizes, self._tied = batch[count:], sizes[count:], self._tied[count:]
        del batch[count:], sizes[count:]
        self._filling_bytes -= sum(sizes)
        return batch, sizes
