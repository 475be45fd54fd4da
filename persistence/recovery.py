"""Taking shards over: claim, seal, read, lay over. The order is the safety (any other order loses data).

    claim     compare-and-set on the epoch that the coordinator decided; from now on the rows name me as an owner
    seal      the log of every incarnation that owned one of the shards and has not released it
    read      p, the client rows, the pending work, and the logs' records above p: only I can change them now
    lay       the records over the client rows and into the overlay, in order of position
    open      the caller's business: nothing of the shard is staged before

What the tail holds belongs to the new owner's dirty set, entities that it never activates included.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from ..actors.errors import CorruptRecord
from .overlay import Overlay
from .records import ClientRow, Record, decode_batch
from .spi import PendingWork, ShardRow, ShardState, Store


class RecoveredShard(msgspec.Struct):
    """Everything the tables and tails say of one shard, as of its claim."""

    row: ShardRow
    position: int
    clients: list[ClientRow]
    tail: list[Record]
    """Records above p, in order, already laid into `overlay`; their client parts are for the windows."""
    overlay: Overlay
    pending: PendingWork
    """What the tables hold; the overlay is laid over it (pending.py)."""


async def take_over(store: Store, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[RecoveredShard]:
    """Claim (shard, epoch) pairs and recover those that were taken.

    Raises `CorruptRecord` when a log or table does not prove itself; the shards then stay claimed but unopened.
    """
    claimed = await store.claim(incarnation, claims)
    if not claimed:
        return []
    sealed = {owner for row in claimed for owner in row.owners if owner != incarnation}
    for owner in sorted(sealed):
        await store.seal(owner)
    epochs = {row.shard: row.epoch for row in claimed}
    # p is read after the seals: what the old owner's last checkpoint did is in it, what comes later cannot be. Where
    # there was nobody to seal, nobody but me could write since the claim.
    current = await store.shards() if sealed else claimed
    owned = [
        row
        for row in current
        # else lost again meanwhile
        if row.state is ShardState.OWNED and row.owner == incarnation and row.epoch == epochs.get(row.shard)
    ]
    return await read_back(store, owned, sealed)


async def read_back(store: Store, rows: Sequence[ShardRow], logs: Iterable[int]) -> list[RecoveredShard]:
    """What tables and logs say of shards that nobody can change meanwhile. `logs`: the incarnations in whose logs
    something of theirs may stand above p. Raises `CorruptRecord`."""
    complete = {row.shard: row.position for row in rows}
    tails: dict[int, list[Record]] = defaultdict(list)
    for owner in sorted(logs):
        for log_row in await store.read_log(owner):
            for record in decode_batch(log_row.content, owner, log_row.n):
                if record.shard in complete and record.position > complete[record.shard]:
                    tails[record.shard].append(record)
    recovered = []
    work = await store.read_pending([row.shard for row in rows])
    windows = await asyncio.gather(*(store.read_clients(row.shard) for row in rows))
    for row, pending, clients in zip(rows, work, windows, strict=True):
        tail = sorted(tails[row.shard], key=lambda record: record.position)
        position = last_position(row, tail)
        recovered.append(RecoveredShard(row, position, clients, tail, _lay(tail), pending))
    return recovered


def last_position(row: ShardRow, tail: list[Record]) -> int:
    """The last position, given all records above p in order. Raises `CorruptRecord` for a hole: positions are
    gapless over all owners, so a log lost rows."""
    for expected, record in enumerate(tail, row.position + 1):
        if record.position != expected:
            raise CorruptRecord(
                f"shard {row.shard}: expected position {expected} after p = {row.position}, found {record.position} "
                f"in the logs of {row.owners}: a log lost rows; restore this store from a backup"
            )
    return row.position + len(tail)


def _lay(tail: list[Record]) -> Overlay:
    overlay = Overlay(half_written=bool(tail))
    for record in tail:
        overlay.lay(record)
    return overlay
