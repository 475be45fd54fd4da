"""A store as one file (persistence/export_format.py), as of one moment: that of a stopped app, after its last commit.

Everything is taken over first, as the next start would (sharding/charge.py), so that what is only in logs comes along
and the shards stand still; then the tables are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.export_format import ExportWriter, Head, Session, ShardEnd
from ..persistence.spi import Store
from ..persistence.tables import Key, Table, TableRow, key_of
from ..sharding.charge import in_charge

PAGE_ROWS = 100
"""Read at a time: each may be of the largest size."""

Tell = Callable[[int, int], None]
"""(done, of how much), for a progress bar."""


async def pages(store: Store, table: Table, shard: int) -> AsyncIterator[list[TableRow]]:
    """All rows of one table of a shard."""
    after: Key | None = None
    while page := await store.scan(table, shard, after, PAGE_ROWS):
        yield page
        after = key_of(page[-1])


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
