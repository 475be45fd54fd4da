"""Bringing stored mailbox entries into memory: page by page as an entity works them off, and after a takeover.

An entity with stored entries reads them when its mailbox is empty, before anything that arrived behind them. After a
takeover every entity that has some is woken without being called, a few at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from ..actors.calls import Status
from ..actors.errors import CorruptRecord
from ..actors.kind import EntityKind
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.pending import PendingView
from ..persistence.records import MailboxRow
from ..persistence.spi import Store
from .accepting import ENTRY_BYTES, Holdings, owed
from .commit import CommitPath
from .log_fields import of_entity
from .owed import Owed
from .resident import Resident
from .retries import until_done
from .shard import OwnedShard, Phase

log = logging.getLogger("atoll.host")


class Paging:
    def __init__(
        self,
        *,
        store: Store,
        commits: CommitPath,
        kinds: Mapping[str, EntityKind],
        holdings: Holdings,
        owed: Owed,
        settings: Settings,
        world: World,
        schedule: Callable[[Resident], None],
    ) -> None:
        self._store = store
        self._commits = commits
        self._kinds = kinds
        self._holdings = holdings
        self._owed = owed
        self._settings = settings
        self._world = world
        self._schedule = schedule
        self._to_resume: deque[OwnedShard] = deque()
        self._something: asyncio.Event = asyncio.Event()
        self._permits = asyncio.Semaphore(settings.resuming_max)
        self._resuming: set[Resident] = set()

    async def page_in(self, resident: Resident) -> None:
        """Read the next stored entries into the mailbox, which is empty. Inside the entity's turn: nothing else of it
        runs meanwhile."""
        shard, backlog = resident.shard, resident.backlog
        assert backlog is not None
        newest = backlog.newest
        await self._commits.settled(resident.ticket)  # the overlay holds committed records only
        room = 1 if self._holdings.full else self._settings.accepted_in_memory_max - self._holdings.in_memory
        limit = max(1, min(self._settings.mailbox_page, room))
        view, after = PendingView(shard.overlay), backlog.paged_to
        read = partial(self._store.read_mailbox, shard.shard, *resident.key, after, limit)
        try:
            stored = await until_done(self._world, read)
        except CorruptRecord as error:
            self._unreadable(resident, error)
            return
        rows, paged_to = view.mailbox(resident.key, stored, after, limit)
        if resident.backlog is not backlog or shard.phase is Phase.CLOSED:
            self.resumed(resident)
            return  # given back meanwhile, or lost
        backlog.unreadable = False
        in_memory = {pending.entry for pending in resident.waiting()}
        for row in rows:
            if row.entry not in in_memory:
                self._bring_in(resident, row)
        if paged_to is not None or backlog.newest != newest:
            backlog.paged_to = max(backlog.paged_to, newest) if paged_to is None else paged_to
            while backlog.behind and backlog.behind[0].behind <= backlog.paged_to:
                resident.mailbox.append(backlog.behind.popleft())  # else it would wait for ever while more is stored
        else:
            backlog.more = False
            self._forget_stored(resident, backlog.stored, 0)
            resident.mailbox.extend(backlog.behind)
            backlog.behind.clear()
            if backlog.empty:
                resident.backlog = None
        self.resumed(resident)

    def _unreadable(self, resident: Resident, error: CorruptRecord) -> None:
        """Damaged in the store: what is owed waits until that is repaired. Who calls is refused, since nobody may
        overtake it; the next call looks again."""
        self.resumed(resident)
        backlog = resident.backlog
        if backlog is None or resident.shard.phase is Phase.CLOSED:
            return
        if not backlog.unreadable:
            told = of_entity(resident)
            log.critical("what is owed to %s/%s cannot be read, it waits: %s", *resident.key, error, extra=told)
        backlog.unreadable = True
        behind, backlog.behind = backlog.behind, deque()
        for pending in behind:
            if pending.owed:
                self._owed.unable(resident, pending, Status.UNAVAILABLE, str(error))
            else:
                pending.send_back(Status.OVERLOADED, str(error).encode())

    def _bring_in(self, resident: Resident, row: MailboxRow) -> None:
        backlog = resident.backlog
        assert backlog is not None
        self._forget_stored(resident, min(1, backlog.stored), ENTRY_BYTES + len(row.accepted.arguments))
        handler = resident.kind.handlers.get(row.accepted.method)
        if handler is None or handler.is_query:
            self._owed.bury_row(resident, row, f"{row.kind} has no command {row.accepted.method!r} any more")
            return
        pending = owed(resident.shard, row, handler)
        self._holdings.entered(pending)
        resident.mailbox.append(pending)

    def _forget_stored(self, resident: Resident, entries: int, size: int) -> None:
        backlog, holdings = resident.backlog, self._holdings
        assert backlog is not None
        backlog.stored -= entries
        holdings.stored = max(0, holdings.stored - entries)
        holdings.bytes = max(0, holdings.bytes - size) if holdings.stored else 0

    # ---- after a takeover ------------------------------------------------------------------------------------------

    def opened(self, shard: OwnedShard, size: int) -> None:
        """It was taken over, with stored entries of that many bytes: whoever has some goes on with it."""
        self._holdings.stored += sum(shard.backlog.values())
        self._holdings.bytes += size
        self._to_resume.append(shard)
        self._something.set()

    def emptied(self, shard: OwnedShard) -> None:
        """Its mailboxes are about to be forgotten: what is owed there is only stored from now on."""
        holdings = self._holdings
        for resident in shard.residents.values():
            entries = [pending for pending in resident.waiting() if pending.entry]
            for pending in entries:
                holdings.left(pending)
            holdings.stored += len(entries)
            holdings.bytes += sum(ENTRY_BYTES + len(pending.call.arguments) for pending in entries)
            self.resumed(resident)

    def reopened(self, shard: OwnedShard) -> None:
        self._to_resume.append(shard)
        self._something.set()

    def closed(self, shard: OwnedShard) -> None:
        holdings = self._holdings
        backlogs = [resident.backlog for resident in shard.residents.values() if resident.backlog is not None]
        gone = sum(shard.backlog.values()) + sum(backlog.stored for backlog in backlogs)
        left = max(0, holdings.stored - gone)
        holdings.bytes = holdings.bytes * left // max(1, holdings.stored)  # on average: a bound, not a bill
        holdings.stored = left

    async def run(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._to_resume:
                await self._resume(self._to_resume.popleft())

    async def _resume(self, shard: OwnedShard) -> None:
        for resident in list(shard.residents.values()):
            if resident.must_page(self._settings.mailbox_commands_max):
                await self._wake(resident)
        for key in list(shard.backlog):
            if not shard.is_open():
                return
            kind = self._kinds.get(key[0])
            if kind is None:
                told = about(shard=shard.shard, incarnation=shard.incarnation, kind=key[0], id=key[1])
                log.warning("%s/%s has stored commands, and this app has no kind %s", *key, key[0], extra=told)
            elif key in shard.backlog:  # it may have been called meanwhile
                await self._wake(shard.resident(kind, key))

    async def _wake(self, resident: Resident) -> None:
        await self._permits.acquire()
        must_page = resident.shard.is_open() and resident.must_page(self._settings.mailbox_commands_max)
        if resident.scheduled or not must_page:
            self._permits.release()
            return
        self._resuming.add(resident)
        self._schedule(resident)

    def resumed(self, resident: Resident) -> None:
        """Its first page is there, or comes later, or its shard is gone: the next one may be woken."""
        if resident in self._resuming:
            self._resuming.discard(resident)
            self._permits.release()
