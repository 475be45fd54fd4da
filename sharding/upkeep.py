"""The checkpoint in the background: tables brought up to date, log rows let go, memory of the uncommitted bounded.

One at a time. Due by age, by commands or by bytes that are committed but not in the tables; above the upper bounds the
commit path is held until there is room. A checkpoint works from frozen overlays, may stop anywhere and is repeated;
a shard whose write is refused belongs to somebody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.checkpoint import ShardCheckpoint, plan
from ..persistence.records import Record
from ..persistence.spi import Store
from .commit import CommitPath
from .retries import until_done
from .shard import OwnedShard


class Upkeep:
    def __init__(
        self,
        *,
        store: Store,
        incarnation: int,
        shards: Mapping[int, OwnedShard],
        commits: CommitPath,
        settings: Settings,
        world: World,
        lost: Callable[[int], None],
    ) -> None:
        """`shards`: the host's own. `lost` hears of a shard whose write the store refused."""
        self._store = store
        self._incarnation = incarnation
        self._shards = shards
        self._commits = commits
        self._settings = settings
        self._world = world
        self._lost = lost
        self.alone = asyncio.Lock()
        """Held by a checkpoint, and around a release: it would have to wait for one, while nobody serves its shards.
        To be held shortly: the commit path may be held until the next checkpoint."""
        self._due = asyncio.Event()
        self._commands = 0
        self._bytes = 0
        self._rows: deque[tuple[int, dict[int, int]]] = deque()
        """Rows of the log that stand there still: n, and each shard's last position in it."""
        self.checkpoints = 0

    def committed(self, n: int, records: list[Record], sizes: list[int]) -> None:
        """Log row `n` became durable: into the overlays, and count. `sizes`: of the records, in bytes."""
        shards = self._shards
        last: dict[int, int] = {}
        for record, size in zip(records, sizes, strict=True):
            last[record.shard] = record.position
            shard = shards.get(record.shard)
            if shard is not None:
                shard.committed(record, size)
                self._bytes += size
                self._commands += 1
        self._rows.append((n, last))
        settings = self._settings
        if self._commands >= settings.checkpoint_commands or self._bytes >= settings.checkpoint_bytes:
            self._due.set()
            if (
                self._commands >= settings.uncheckpointed_commands_max
                or self._bytes >= settings.uncheckpointed_bytes_max
            ):
                self._commits.hold()

    def recovered(self, shard: OwnedShard) -> None:
        """A tail was laid over: it is this host's to write now, and soon, so that the sealed logs can go."""
        self._commands += shard.overlay.dirty.records
        self._bytes += shard.overlay.dirty.bytes
        if shard.former_owners:
            self._due.set()

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.checkpoint_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Bring the tables up to what is committed now, then let go of the log rows below."""
        async with self.alone:
            self._due.clear()
            shards = [shard for shard in self._shards.values() if _needs(shard)]
            former = {owner for shard in shards for owner in shard.former_owners}
            await self._bring_up(shards)
            self._commits.resume()
            self.checkpoints += 1
            if shards or self._rows:
                await self._let_go(former)

    async def checkpoint_only(self, numbers: Collection[int]) -> None:
        """Bring the tables of these shards up, so that there is little left to write when they are given back."""
        async with self.alone:
            await self._bring_up([shard for n in numbers if (shard := self._shards.get(n)) is not None])

    async def _bring_up(self, shards: Sequence[OwnedShard]) -> None:
        parts = [self._part(shard) for shard in shards]
        refused = await self._write(parts)
        for shard, part in zip(shards, parts, strict=True):
            if shard.shard in refused:
                self._lost(shard.shard)
            else:
                shard.written(part.forgotten_clients)
        layers = [shard.overlay.dirty for shard in self._shards.values()]
        self._commands = sum(dirty.records for dirty in layers)
        self._bytes = sum(dirty.bytes for dirty in layers)

    async def release(self, shards: Sequence[OwnedShard]) -> frozenset[int]:
        """With `alone` held: write what is left of shards whose intake and turns have stopped, and give each up in the
        transaction of its last part. Returns those that somebody else owns.

        The caller has waited until all that was staged is committed; a checkpoint that stopped half way is finished
        first.
        """
        assert self.alone.locked()
        await self._bring_up([shard for shard in shards if shard.overlay.frozen is not None])
        parts = []
        for shard in shards:
            assert shard.committed_position == shard.position, (shard.committed_position, shard.position)
            part = self._part(shard, release=True)
            assert part.position == shard.position, (part.position, shard.position)
            parts.append(part)
        return await self._write(parts)

    def _part(self, shard: OwnedShard, *, release: bool = False) -> ShardCheckpoint:
        dirty = shard.overlay.freeze(shard.committed_position)
        # a release writes every client's floor: the next owner must not run what this one's clients gave up
        clients = set(shard.windows) if release else dirty.clients
        retention_ms = int(self._settings.command_id_retention_s * 1000)
        return ShardCheckpoint(
            shard.shard,
            shard.epoch,
            shard.overlay.frozen_position,
            dirty,
            shard.client_rows(clients, self._commits.committed),
            forgotten_clients=tuple(sorted(shard.forgotten)),
            forget_named_before_ms=max(0, self._world.wall_ms() - retention_ms),
            release=release,
        )

    async def _write(self, parts: Iterable[ShardCheckpoint]) -> frozenset[int]:
        refused: frozenset[int] = frozenset()
        for transaction in plan(parts, self._settings.table_write_rows, self._settings.table_write_bytes):
            writes = [write for write in transaction if write.shard not in refused]
            refused |= await until_done(self._world, partial(self._store.checkpoint, self._incarnation, writes))
        return refused

    async def _let_go(self, former: set[int]) -> None:
        """Drop the log rows of which every shard's tables are past, whoever owns the shard now: a shard that was taken
        away still has its tail here until its new owner has written it."""
        rows = await until_done(self._world, self._store.shards)
        complete = {row.shard: row.position for row in rows}
        through_n = 0
        while self._rows and all(position <= complete[shard] for shard, position in self._rows[0][1].items()):
            through_n, _ = self._rows.popleft()
        if through_n:
            await self._delete_rows(self._incarnation, through_n)
        named = {owner for row in rows for owner in row.owners}
        for owner in sorted(former - named):  # sealed, and every shard's owner has written what it took from there
            left = await until_done(self._world, partial(self._store.read_log, owner))
            if left:
                await self._delete_rows(owner, left[-1].n)

    async def _delete_rows(self, incarnation: int, through_n: int) -> None:
        await until_done(self._world, partial(self._store.delete_log_rows, incarnation, through_n))


def _needs(shard: OwnedShard) -> bool:
    return bool(
        shard.overlay.frozen is not None or shard.overlay.dirty.records or shard.former_owners or shard.forgotten
    )
