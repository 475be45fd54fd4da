"""Taking shards, giving them back, and telling clients: the host's side of ownership.

The store's `shards` rows are the only control plane: what is assigned to this host there it claims and recovers; what
is no longer its own it closes. A poke only makes it look sooner, so lost, late and doubled pokes mean nothing.

    ASSIGNED to me --take_over--> OPEN     OPEN --release--> FREE, or ASSIGNED to its target (written by the source)
    row says somebody else: closed at once, its activations never run again

A handoff: the row of an OPEN shard names a target. The tables are brought up to date while it is still served; then its
intake stops, what runs ends and is committed, and one small transaction writes the rest and the release, for several
shards at a time. Clients and the target hear of it at once; the target has nothing to seal. Commands wait at their
senders meanwhile. A turn that does not end by the deadline rolls its shard's release back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Protocol

from ..actors.errors import CorruptRecord, StoreUnavailable
from ..actors.logs import about
from ..actors.outage import Outage
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.recovery import RecoveredShard, take_over
from ..persistence.spi import ShardRow, ShardState, Store
from ..persistence.stripes import Stripe
from .commit import CommitPath
from .intake import Intake
from .messages import Poke, TableUpdate
from .outbox import Courier
from .shard import OwnedShard, Phase
from .table import ShardTable
from .upkeep import Upkeep

log = logging.getLogger("atoll.host")

HANDOFF_SHARDS = 16
"""Handed over in one transaction: fewer make a drain slow, more make each of them wait for all."""
HANDOFF_PATIENCE_S = 0.02
"""A shard whose turns do not end within this is handed over by itself, later."""


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
        courier: Courier | None,
        stripe: Stripe,
    ) -> None:
        """`shards` and `table` are the host's; only this module adds to and removes from them. Without a
        `courier` other hosts find out by themselves what they are given."""
        self._store = store
        self._incarnation = incarnation
        self._told = about(incarnation=incarnation)
        self._outage = Outage(log, self._told)
        self._shards = shards
        self._table = table
        self._intake = intake
        self._upkeep = upkeep
        self._commits = commits
        self._settings = settings
        self._world = world
        self._listener = listener
        self._courier = courier
        self._numbers = stripe.shards(settings.shards)
        """Of the shards that the store has."""
        self._background: set[asyncio.Task[None]] = set()
        self._handing_over = False
        self._addresses = {incarnation: address}
        self._look = asyncio.Event()
        self._offered: dict[int, int] = {}
        """Shard -> epoch: what pokes say may be claimed."""
        self._targets: dict[int, int] = {}
        """Shard -> incarnation: where those go that are handed over."""
        self._stuck: dict[int, int] = {}
        """Shard -> epoch at which its recovery found corruption: not tried again at that epoch."""

    def poke(self, assigned: Sequence[tuple[int, int]] = ()) -> None:
        """Look at the store now. `assigned`: (shard, epoch) that may be claimed without looking for them first."""
        self._offered.update(offer for offer in assigned if offer[0] in self._numbers)
        self._look.set()

    async def run(self) -> None:
        while True:
            for task in [task for task in self._background if task.done()]:
                self._background.discard(task)
                task.result()  # a bug of ours ends the host
            try:
                await self._once()
            except StoreUnavailable as error:
                self._outage.failed(self._world.monotonic(), "the store does not answer, looking again: %s", error)
            else:
                self._outage.worked(self._world.monotonic(), "the store answers again, after %.1f s")
            try:
                async with asyncio.timeout(self._settings.store_poll_s * self._world.random.uniform(0.75, 1.25)):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()

    async def _once(self) -> None:
        offered, self._offered = self._offered, {}
        offers = [
            (shard, epoch)
            for shard, epoch in offered.items()
            if shard not in self._shards and self._stuck.get(shard) != epoch
        ]
        if offers:
            await self._take(offers)
        rows = await self._store.shards()
        for row in rows:
            shard = self._shards.get(row.shard)
            if shard is not None and row.epoch > shard.epoch and shard.phase is not Phase.RELEASING:
                self.close(row.shard)
        self._begin_handoff(rows)
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
            if len(claims) > 1:
                for claim in claims:  # the others need not stay closed with the one that is damaged
                    await self._take([claim])
                return
            self._stuck.update(claims)
            ((stuck, _),) = claims
            log.critical("shard %d stays closed, its recovery failed: %s", stuck, error, extra=self._told)
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
            self._tell_coordinators()

    async def _publish(self, rows: list[ShardRow]) -> None:
        owned = [row for row in rows if row.state is ShardState.OWNED and row.owner != self._incarnation]
        await self._learn_addresses(row.owner for row in owned)
        self._push(
            self._table.merge(
                (row.shard, row.epoch, row.owner, self._addresses[row.owner])
                for row in owned
                if row.owner is not None and row.owner in self._addresses
            )
        )

    async def _learn_addresses(self, incarnations: Iterable[int | None]) -> None:
        if any(incarnation not in self._addresses for incarnation in incarnations):
            for host in await self._store.hosts():
                self._addresses[host.incarnation] = host.address

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

    # ---- giving shards back ----------------------------------------------------------------------------------------

    async def release(self, number: int) -> bool:
        """Give a shard back: stop intake, let turns end, commit, write everything and the release. False: not done
        (the deadline passed and it is open again, or it was not ours)."""
        shard = self._stop_intake(number)
        if shard is None or not await self._quieten(shard):
            return False
        async with self._upkeep.alone:
            return bool(await self._give_back([shard]))

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        self._background.add(self._world.spawn(work, name))

    def _begin_handoff(self, rows: Sequence[ShardRow]) -> None:
        """See to the shards that are wanted elsewhere, a few at a time; the next look finds the others."""
        if self._handing_over:
            return
        self._targets = {
            row.shard: row.target
            for row in rows
            if row.target is not None
            and row.owner == self._incarnation
            and (shard := self._shards.get(row.shard)) is not None
            and shard.is_open()
            and shard.epoch == row.epoch
        }
        if self._targets:
            self._handing_over = True
            self._spawn(self._hand_over(list(self._targets)), f"atoll-handoff-{self._incarnation}")

    async def _hand_over(self, leaving: Sequence[int]) -> None:
        try:
            await self._approach(set(self._targets.values()))
            for first in range(0, len(leaving), HANDOFF_SHARDS):
                group = leaving[first : first + HANDOFF_SHARDS]
                await self._upkeep.checkpoint_only(group)  # while they are served
                async with self._upkeep.alone:
                    await self._hand_over_now(group)
        finally:
            self._handing_over = False
            self._look.set()

    async def _approach(self, targets: set[int]) -> None:
        """Have connections to the targets before it matters."""
        with contextlib.suppress(StoreUnavailable):  # they find out by themselves then
            await self._learn_addresses(targets)
        if self._courier is not None:
            for target in targets & self._addresses.keys():
                self._courier.connect_to(self._addresses[target])

    async def _hand_over_now(self, group: Sequence[int]) -> None:
        began = self._world.monotonic()
        shards = [shard for number in group if (shard := self._stop_intake(number)) is not None]
        quiet = {self._world.spawn(self._quieten(shard), f"atoll-quieten-{shard.shard}"): shard for shard in shards}
        if not quiet:
            return
        ended, slow = await asyncio.wait(quiet, timeout=HANDOFF_PATIENCE_S)
        for task in slow:
            self._spawn(self._give_back_late(task, quiet[task]), f"atoll-give-back-{quiet[task].shard}")
        given = await self._give_back([quiet[task] for task in ended if task.result()])
        took_ms = (self._world.monotonic() - began) * 1000
        log.info("handed %d shards over in %.1f ms", len(given), took_ms, extra=self._told)

    async def _give_back_late(self, quiet: asyncio.Task[bool], shard: OwnedShard) -> None:
        """A turn of it runs on: the others do not wait for that."""
        if await quiet:
            async with self._upkeep.alone:
                await self._give_back([shard])

    def _stop_intake(self, number: int) -> OwnedShard | None:
        shard = self._shards.get(number)
        if shard is None or not shard.is_open():
            return None
        shard.phase = Phase.RELEASING
        self._bounce(shard)
        return shard

    async def _quieten(self, shard: OwnedShard) -> bool:
        """Wait until nothing of a shard without intake runs or is uncommitted. False: it is open again, or lost."""
        try:
            async with asyncio.timeout(self._settings.release_deadline_s):
                await shard.turns_ended()
                self._bounce(shard)  # what was let in for a turn that is over: nothing may be staged from here on
                await self._commits.settled(shard.ticket)
        except TimeoutError:
            if shard.phase is Phase.CLOSED:
                return False
            shard.phase = Phase.OPEN
            self._listener.reopened(shard)
            log.warning(
                "shard %d was not released: a turn ran beyond %s s",
                shard.shard,
                self._settings.release_deadline_s,
                extra=about(shard=shard.shard, incarnation=self._incarnation),
            )
            return False
        # lost meanwhile: what is committed of it stands in our log, for its new owner
        return shard.phase is not Phase.CLOSED

    async def _give_back(self, shards: Sequence[OwnedShard]) -> set[int]:
        """Write what is left of quiet shards, and their release. Returns those that were given back."""
        kept = [shard for shard in shards if shard.phase is not Phase.CLOSED]
        if not kept:
            return set()
        refused = await self._upkeep.release(kept)
        given = {shard.shard for shard in kept} - refused
        self._announce([shard for shard in kept if shard.shard in given])
        for shard in kept:
            self.close(shard.shard)
        self._tell_coordinators()
        return given

    def _announce(self, given: Sequence[OwnedShard]) -> None:
        """Tell targets what they may claim, and clients where their shards go. What the rows said before may be wrong
        by now: then the claim takes nothing, and a newer epoch puts the clients right."""
        entries = [
            (shard.shard, shard.epoch + 1, target, self._addresses[target])
            for shard in given
            if (target := self._targets.get(shard.shard)) in self._addresses
        ]
        if self._courier is not None:
            for address in {address for *_, address in entries}:
                claims = [(shard, epoch) for shard, epoch, _, there in entries if there == address]
                self._courier.poke(address, claims)
        self._push(self._table.merge(entries))

    def _tell_coordinators(self) -> None:
        for peer in self._intake.coordinators():
            peer.send(Poke())
