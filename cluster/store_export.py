"""A store as one file (persistence/export_format.py), as of one moment: that of a stopped app, after its last commit.

Everything is taken over first, as the next start would (sharding/charge.py), so that what is only in logs comes along
and the shards stand still; then the tables are read. Where an app runs, that is done to a copy of the store as of one
instant (sqlite_backup.py, store_copy.py): the export is of that instant, with every command acknowledged before it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.export_format import ExportWriter, Head, Session, ShardEnd
from ..persistence.spi import Snapshots, Store
from ..persistence.sqlite import SQLiteStore
from ..persistence.tables import Table
from ..sharding.charge import StoreInUse, in_charge, quiet_holders
from .store_copy import copy_snapshot
from .store_walk import Tell, pages


async def export_store(
    store: Store, file: IO[bytes], *, app: str, settings: Settings, world: World, software: str, tell: Tell
) -> int:
    """Write everything that the opened store holds; return the number of rows. Raises `StoreInUse` when the app runs,
    or was started meanwhile: then what was written is no export."""
    rows = 0
    async with in_charge(store, settings, world) as charge:
        sessions = await store.sessions()
        head = Head(
            id=world.entropy(8).hex(),
            app=app,
            shards=len(charge.held),
            sessions=len(sessions),
            numbers=await store.numbers(),
            made_ms=world.wall_ms(),
            software=software,
        )
        writer = ExportWriter(file.write, head)
        for client, renewals in sorted(sessions.items()):
            writer.session(Session(client, renewals))
        for shard, held in sorted(charge.held.items()):
            for table in Table:
                async for page in pages(store, table, shard):
                    for row in page:
                        writer.row(table, shard, row)
                    rows += len(page)
            writer.shard(ShardEnd(shard, held.epoch, held.position))
            tell(shard + 1, len(charge.held))
        await charge.check()
        writer.end()
    return rows


@contextlib.asynccontextmanager
async def standing_still(
    store: Store, app: str, settings: Settings, world: World, folder: Path, tell: Tell
) -> AsyncIterator[Store]:
    """The opened store, or where an app runs on it, a copy that is made in `folder` and removed
    afterwards. Raises `StoreInUse` for a running store that cannot be copied here."""
    try:
        await quiet_holders(store, settings.lease_s)
    except StoreInUse:
        if not isinstance(store, SQLiteStore | Snapshots):
            raise
        with tempfile.TemporaryDirectory(prefix=".atoll-export-", dir=folder) as temporary:
            async with _copy_of(store, app, settings, world, Path(temporary) / "store", tell) as copy:
                yield copy
    else:
        yield store


@contextlib.asynccontextmanager
async def _copy_of(
    store: SQLiteStore | Snapshots, app: str, settings: Settings, world: World, folder: Path, tell: Tell
) -> AsyncIterator[Store]:
    if isinstance(store, Snapshots):
        await copy_snapshot(store, app, settings, world, folder, tell)
    else:
        await store.backup(folder, tell)
    copy = SQLiteStore(folder)
    await copy.open(app, settings.shards)
    try:
        yield copy
    finally:
        await copy.close()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete and durable, and else not at all. Only its owner may read
    it. Raises `FileExistsError` when there is one already."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another name, or remove it")
    draft = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename it takes nobody's place
    finally:
        draft.unlink(missing_ok=True)
