"""Is everything in a store that has to be, and is it what was written? Of a stopped app; nothing is changed.

    each row         proves itself at its place, and its columns say what it says        (Store.check)
    each log         has no holes, its batches prove themselves
    each shard       its owners and their logs are there, and above p every position once
    what it holds    nothing is above the shard's last position; what a snapshot does not cover, history or a log does

An app that is started meanwhile is noticed at the end.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

from ..actors.errors import CorruptRecord
from ..actors.settings import Settings
from ..persistence.records import Commit, DeadLetterRow, EntityRow, MailboxRow, OutboxRow, Record, decode_batch
from ..persistence.recovery import last_position
from ..persistence.row_checks import Problems
from ..persistence.spi import ShardRow, Store
from ..persistence.tables import Table, TableRow, position_of
from ..sharding.charge import StoreInUse, quiet_holders
from ..sharding.hashing import shard_of
from .store_walk import Tell, commits, pages


async def check_store(store: Store, settings: Settings, tell: Tell) -> list[str]:
    """What is damaged, one line each; empty when all is well. Raises `StoreInUse` when the app runs."""
    found: list[str] = []
    with _heard(found):
        await quiet_holders(store, settings.lease_s)
    with _heard(found):
        found += await store.check(None)
    rows: list[ShardRow] = []
    with _heard(found):
        rows = await store.shards()
    tails = await _tails(store, rows, found)
    for done, row in enumerate(rows, 1):
        with _heard(found):
            damaged = await store.check(row.shard)
            found += damaged
            if not damaged:  # else the rest could only say it again
                await _check_shard(store, row, tails[row.shard], settings.shards, found)
        tell(done, len(rows))
    with _heard(found):
        if await store.shards() != rows:
            raise StoreInUse("an app was started on this store meanwhile: stop it, and check again")
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _heard(found: list[str]) -> Iterator[None]:
    """Damage is what is looked for: it ends one look, and not the others."""
    try:
        yield
    except CorruptRecord as error:
        found.append(str(error))


async def _tails(store: Store, rows: list[ShardRow], found: list[str]) -> dict[int, list[Record]]:
    """The records above p of each shard, in order."""
    problems = Problems()
    tails: dict[int, list[Record]] = defaultdict(list)
    positions = {row.shard: row.position for row in rows}
    for owner in sorted({owner for row in rows for owner in row.owners}):
        try:
            for log_row in await store.read_log(owner):
                for record in decode_batch(log_row.content, owner, log_row.n):
                    if record.shard not in positions:
                        problems.add(f"log {owner}, row {log_row.n}: a record of shard {record.shard}, which is none")
                    elif record.position > positions[record.shard]:
                        tails[record.shard].append(record)
        except (CorruptRecord, ValueError) as error:  # ValueError: there is no such host
            problems.add(str(error))
    found += problems.lines
    for tail in tails.values():
        tail.sort(key=lambda record: record.position)
    return tails


async def _check_shard(store: Store, row: ShardRow, tail: list[Record], shards: int, found: list[str]) -> None:
    problems = Problems()
    last = row.position
    try:
        last = last_position(row, tail)
    except CorruptRecord as error:
        problems.add(str(error))
    in_tail: dict[tuple[str, str], set[int]] = defaultdict(set)
    for record in tail:
        in_tail[record.kind, record.id].add(record.seq)
    for table in Table:
        async for page in pages(store, table, row.shard):
            for item in page:
                _check_row(item, row.shard, last, shards, problems.add)
                if isinstance(item, EntityRow) and item.state_seq < item.seq and not item.deleted:
                    await _check_events(store, row.shard, item, in_tail[item.kind, item.id], problems.add)
    found += problems.lines


def _check_row(item: TableRow, shard: int, last: int, shards: int, add: Callable[[str], None]) -> None:
    if position_of(item) > last:
        add(f"shard {shard} ends at position {last}, and holds {position_of(item)}: {_name(item)}")
    if isinstance(item, EntityRow | Commit | MailboxRow | DeadLetterRow) and shard_of(item.id, shards) != shard:
        add(f"{_name(item)} does not belong to shard {shard}")


async def _check_events(
    store: Store, shard: int, item: EntityRow, in_tail: set[int], add: Callable[[str], None]
) -> None:
    """All events that the entity's state is made of, beyond its snapshot."""
    lacking = set(range(item.state_seq + 1, item.seq + 1)) - in_tail
    async for page in commits(store, shard, item.kind, item.id, item.state_seq, item.seq):
        lacking.difference_update(commit.seq for commit in page)
    if lacking:
        add(
            f"{_name(item)} of shard {shard}: its events of version {min(lacking)} are missing "
            f"({len(lacking)} of {item.seq - item.state_seq}); restore this store from a backup"
        )


def _name(item: TableRow) -> str:
    if isinstance(item, OutboxRow):
        return f"message {item.number}"
    return f"{type(item).__name__} {getattr(item, 'kind', '')}/{getattr(item, 'id', '')!r}"
