"""All shards of a stopped app in one hand: for an export, and for whatever else needs the tables complete and still.

    quiet     nobody who has shards renews its lease for as long as one lasts                 else `StoreInUse`
    take      condemn them, assign the shards to us, claim, seal, read the tails               as after any failover
    settle    write the tails into the tables: p is the last position, no log is needed
    (work)    nothing of it runs a turn, and nothing is staged
    release   the shards are free, our log is sealed

The quiet is courtesy; the store is what keeps this safe. An app that starts meanwhile finds a host at an address where
nobody listens, condemns it and takes the shards over: from then on every write of ours is refused, and who only read
finds out at the end (`Charge.check`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..actors.errors import StoreError
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.checkpoint import ShardCheckpoint, plan
from ..persistence.recovery import RecoveredShard, read_back, take_over
from ..persistence.slices import in_slices
from ..persistence.spi import Assignment, CheckpointEnd, HostRow, HostState, ShardRow, Store, TableWrite
from .shard import OwnedShard

SHARDS_AT_ONCE = 32
"""Taken together: their tails are in memory until they are written."""
NOBODY = "127.0.0.1:1"
"""Where we are said to listen: any kernel refuses a connection there, so nobody waits for us."""


class StoreInUse(StoreError):
    """An app runs on the store, or was started while something else worked on it; the message says what to do."""


class Held(msgspec.Struct, frozen=True):
    epoch: int
    position: int
    """The last one; the tables are complete up to it."""


class Charge:
    """What one has in hand."""

    def __init__(self, store: Store, incarnation: int) -> None:
        self.held: dict[int, Held] = {}
        self._store = store
        self._incarnation = incarnation

    async def write(self, shard: int, **rows: Any) -> None:
        """Write rows of one shard (fields of `TableWrite`) in one transaction. Raises `StoreInUse` when it is ours no
        more; then nothing was written."""
        await self.write_all([TableWrite(shard, self.held[shard].epoch, **rows)])

    async def write_all(self, writes: list[TableWrite]) -> None:
        if await self._store.checkpoint(self._incarnation, writes):
            raise _started()

    async def check(self) -> None:
        """Raise `StoreInUse` unless nobody but us can have changed anything since it was taken."""
        epochs = {row.shard: row.epoch for row in await self._store.shards()}
        if any(epochs[shard] != held.epoch for shard, held in self.held.items()):
            raise _started()

    async def release(self) -> None:
        """Give back what is still ours, and end as a host."""
        for shards in in_slices(self.held.items(), SHARDS_AT_ONCE):
            ends = [
                TableWrite(shard, held.epoch, end=CheckpointEnd(held.position, release=True)) for shard, held in shards
            ]
            await self._store.checkpoint(self._incarnation, ends)
        self.held = {}
        await self._store.condemn(self._incarnation, 0)
        await self._store.seal(self._incarnation)


@contextlib.asynccontextmanager
async def in_charge(store: Store, settings: Settings, world: World) -> AsyncIterator[Charge]:
    """Every shard of a store that no app runs on, its tables complete. Raises `StoreInUse` when one does."""
    for host in await quiet_holders(store, settings.lease_s):
        if not await store.condemn(host.incarnation, host.renewals):
            raise _runs(host)
    incarnation = await store.register_host(NOBODY, "upkeep", None)
    charge = Charge(store, incarnation)
    try:
        for rows in in_slices(await store.shards(), SHARDS_AT_ONCE):
            await _take(charge, store, incarnation, rows, settings, world)
        yield charge
    finally:
        await charge.release()


async def quiet_holders(store: Store, lease_s: float) -> list[HostRow]:
    """The live hosts that have or are to have shards, once a lease has passed in which none of them renewed its own.
    Waits that long if there are any."""
    before = await _holders(store)
    if before:
        await asyncio.sleep(lease_s)
    after = await _holders(store)
    for incarnation, host in after.items():
        if incarnation not in before or host.renewals != before[incarnation].renewals:
            raise _runs(host)
    return list(after.values())


async def _holders(store: Store) -> dict[int, HostRow]:
    holders = {holder for row in await store.shards() for holder in (row.assigned, row.target, *row.owners)}
    hosts = await store.hosts()
    return {host.incarnation: host for host in hosts if host.state is HostState.LIVE and host.incarnation in holders}


async def what_tables_lack(
    store: Store, rows: Sequence[ShardRow], settings: Settings, world: World
) -> AsyncIterator[list[TableWrite]]:
    """Writes that complete the tables of these shards, in a store that stands still by itself, as a snapshot does.
    Nothing is taken into hands: they are for a copy."""
    for some in in_slices(rows, SHARDS_AT_ONCE):
        for writes in _completing(
            await read_back(store, some, {o for row in some for o in row.owners}), settings, world
        ):
            yield writes


async def _take(
    charge: Charge, store: Store, incarnation: int, rows: list[ShardRow], settings: Settings, world: World
) -> None:
    decided = [Assignment(row.shard, row.epoch, incarnation) for row in rows]
    if len(await store.assign(decided)) < len(rows):
        raise _started()
    recovered = await take_over(store, incarnation, [(row.shard, row.epoch + 1) for row in rows])
    if len(recovered) < len(rows):
        raise _started()
    for writes in _completing(recovered, settings, world):
        await charge.write_all(writes)
    charge.held.update((shard.row.shard, Held(shard.row.epoch, shard.position)) for shard in recovered)


def _completing(recovered: Iterable[RecoveredShard], settings: Settings, world: World) -> Iterator[list[TableWrite]]:
    parts = (_part(shard, world) for shard in recovered)
    return plan(parts, settings.table_write_rows, settings.table_write_bytes)


def _part(recovered: RecoveredShard, world: World) -> ShardCheckpoint:
    """What the tables lack of one shard: what the first checkpoint of its next owner would write."""
    shard = OwnedShard(recovered, world.wall_ms())
    dirty = shard.overlay.freeze(shard.position)
    return ShardCheckpoint(shard.shard, shard.epoch, shard.position, dirty, shard.client_rows(set(shard.windows), 0))


def _runs(host: HostRow) -> StoreInUse:
    return StoreInUse(
        f"the app runs on this store: host {host.incarnation} at {host.address} keeps its lease; "
        "stop it first (atoll stop NAME)"
    )


def _started() -> StoreInUse:
    return StoreInUse("an app was started on this store meanwhile: stop it, and begin again")
