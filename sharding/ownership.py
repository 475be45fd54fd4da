"""Taking shards, giving them back, and telling clients: the host's side of ownership.

The store's `shards` rows are the only control plane: what is assigned to this host there it claims and recovers; what
is no longer its own it closes. A poke only makes it look sooner, so lost, late and doubled pokes mean nothing.

    ASSIGNED to me --take_over--> OPEN          OPEN --release--> FREE (written by the source itself)
    row says somebody else: closed at once, its activations never run again
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from ..actors.errors import CorruptRecord, StoreUnavailable
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.recovery import RecoveredShard, take_over
from ..persistence.spi import ShardRow, ShardState, Store
from .commit import CommitPath
from .intake import Intake
from .messages import TableUpdate
from .shard import OwnedShard, Phase
from .table import ShardTable
from .upkeep import Upkeep

log = logging.getLogger("atoll.host")


class ShardListener(Protocol):
    """Those who keep something for each shard."""

    def opened(self, shard: OwnedShard, recovered: RecoveredShard) -> None:
        """It was taken over."""
        ...

    def emptied(self, shard: OwnedShard) -> None:
        """Its mailboxes are about to be forgotten: it is closed, or about to be given back."""
        ...

    def reopened(self, shard: OwnedShard) -> None:
        """It was to be given back and is not: its mailboxes are empty."""
        ...

    def closed(self, shard: OwnedShard) -> None:
        """It is not ours any more."""
        ...


class Ownership:
    def __init__(
        self,
        *,
        store: Store,
        incarnation: int,
        address: str,
        shards: dict[int, OwnedShard],
        table: ShardTable,
        intake: Intake,
        upkeep: Upkeep,
        commits: CommitPath,
        settings: Settings,
        world: World,
        listener: ShardListener,
    ) -> None:
        """`shards` and `table` are the host's; only this module adds to and removes from them."""
        self._store = store
        self._incarnation = incarnation
        self._told = about(incarnation=incarnation)
        self._shards = shards
        self._table = table
        self._intake = intake
        self._upkeep = upkeep
        self._commits = commits
        self._settings = settings
        self._world = world
        self._listener = listener
        self._addresses = {incarnation: address}
        self._look = asyncio.Event()
        self._stuck: dict[int, int] = {}
        """Shard -> epoch at which its recovery found corruption: not tried again at that epoch."""

    def poke(self) -> None:
        self._look.set()

    async def run(self) -> None:
        while True:
            try:
                await self._once()
            except StoreUnavailable as error:
                log.warning("the store does not answer, looking again: %s", error, extra=self._told)
            try:
                async with asyncio.timeout(self._settings.store_poll_s * self._world.random.uniform(0.75, 1.25)):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()

    async def _once(self) -> None:
        rows = await self._store.shards()
        for row in rows:
            shard = self._shards.get(row.shard)
            if shard is not None and row.epoch > shard.epoch and shard.phase is not Phase.RELEASING:
                self.close(row.shard)
        claims = [
            (row.shard, row.epoch)
            for row in rows
            if row.shard not in self._shards
            and self._stuck.get(row.shard) != row.epoch
            and (
                (row.state is ShardState.ASSIGNED and row.assigned == self._incarnation)
                or (row.state is ShardState.OWNED and row.owner == self._incarnation)
            )
        ]
        if claims:
            await self._take(claims)
        await self._publish(rows)

    async def _take(self, claims: list[tuple[int, int]]) -> None:
        try:
            recovered = await take_over(self._store, self._incarnation, claims)
        except CorruptRecord as error:
            self._stuck.update(claims)
            shards = [shard for shard, _ in claims]
            log.critical("shards %s stay closed, their recovery failed: %s", shards, error, extra=self._told)
            return
        entries = []
        for part in recovered:
            shard = OwnedShard(part, self._world.wall_ms())
            self._shards[shard.shard] = shard
            self._upkeep.recovered(shard)
            self._listener.opened(shard, part)
            entries.append((shard.shard, shard.epoch, self._incarnation, self._addresses[self._incarnation]))
        if entries:
            log.info("opened %d shards", len(entries), extra=self._told)
            self._push(self._table.merge(entries))

    async def _publish(self, rows: list[ShardRow]) -> None:
        owned = [row for row in rows if row.state is ShardState.OWNED and row.owner != self._incarnation]
        if any(row.owner not in self._addresses for row in owned):
            for host in await self._store.hosts():
                self._addresses[host.incarnation] = host.address
        self._push(
            self._table.merge(
                (row.shard, row.epoch, row.owner, self._addresses[row.owner])
                for row in owned
                if row.owner is not None and row.owner in self._addresses
            )
        )

    def _push(self, news: list[tuple[int, int, int, str]]) -> None:
        if news:
            update = TableUpdate(tuple(news))
            for peer in self._intake.peers():
                peer.send(update)

    def close(self, number: int) -> None:
        """The shard is not ours any more: answer its queued work, and never run another turn of it."""
        shard = self._shards.pop(number, None)
        if shard is not None:
            shard.phase = Phase.CLOSED
            self._bounce(shard)
            self._listener.closed(shard)

    def _bounce(self, shard: OwnedShard) -> None:
        """Senders find the new owner; what is owed is in the store, for whoever owns it."""
        self._listener.emptied(shard)
        for resident in shard.residents.values():
            for pending in resident.waiting():
                if not pending.owed:
                    pending.window.bounce(pending.call.number)
                    self._intake.moved(pending.peer, pending.call)
            resident.clear()

    async def release(self, number: int) -> bool:
        """Give a shard back: stop intake, let turns end, commit, write everything and the release. False: not done
        (the deadline passed and it is open again, or it was not ours)."""
        shard = self._shards.get(number)
        if shard is None or shard.phase is not Phase.OPEN:
            return False
        shard.phase = Phase.RELEASING
        self._bounce(shard)
        try:
            async with asyncio.timeout(self._settings.release_deadline_s):
                await shard.turns_ended()
                await self._commits.settled(shard.ticket)
        except TimeoutError:
            if shard.phase is Phase.CLOSED:
                return False
            shard.phase = Phase.OPEN
            self._listener.reopened(shard)
            told = about(shard=number, incarnation=self._incarnation)
            deadline_s = self._settings.release_deadline_s
            log.warning("shard %d was not released: a turn ran beyond %s s", number, deadline_s, extra=told)
            return False
        if shard.phase is Phase.CLOSED:
            return False  # lost meanwhile: what is committed of it stands in our log, for its new owner
        released = await self._upkeep.release(shard)
        self.close(number)
        return released
