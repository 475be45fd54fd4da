"""A running store copied as of one instant, where the store can show itself so (`Snapshots`): into an SQLite folder.

    snapshot     what is durable at that instant: every acknowledged command is in it, in the tables or in a log
    tables       copied as they are, shard by shard
    logs         what the tables lack is written into the copy, as the next owner of each shard would write it

Nothing is taken from anybody: the app's hosts do not notice. The copy is a stopped app's store; nobody owns anything.
"""

from __future__ import annotations

from pathlib import Path

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import ShardRow, Snapshots, Store, loading_name
from ..persistence.sqlite import SQLiteStore
from ..persistence.tables import Table
from ..sharding.charge import what_tables_lack
from .store_batch import TableBatch
from .store_walk import Tell, pages


async def copy_snapshot(
    source: Snapshots, app: str, settings: Settings, world: World, folder: Path, tell: Tell
) -> None:
    """Make the copy in `folder`, which must not exist."""
    async with source.snapshot() as still:
        copy = SQLiteStore(folder)
        await copy.open(loading_name(app, "a copy"), settings.shards)
        try:
            await _copy(still, copy, app, settings, world, tell)
        finally:
            await copy.close()


async def _copy(still: Store, copy: Store, app: str, settings: Settings, world: World, tell: Tell) -> None:
    rows = await still.shards()
    for row in rows:
        await _copy_tables(still, copy, row, settings)
        tell(row.shard + 1, len(rows))
    async for writes in what_tables_lack(still, rows, settings, world):
        await copy.load(writes)
    await copy.finish_load(app, await still.numbers(), await still.sessions())


async def _copy_tables(still: Store, copy: Store, row: ShardRow, settings: Settings) -> None:
    batch = TableBatch(row.shard)
    for table in Table:
        async for page in pages(still, table, row.shard):
            for each in page:
                batch.add(table, each)
                if batch.rows >= settings.table_write_rows or batch.bytes >= settings.table_write_bytes:
                    await copy.load([batch.taken()])
    await copy.load([batch.taken(row.epoch, row.position)])
