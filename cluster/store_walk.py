"""Walking over a whole store, a page in memory at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from ..persistence.records import Commit
from ..persistence.spi import Store
from ..persistence.tables import Key, Table, TableRow, key_of

PAGE_ROWS = 100
"""Each may be of the largest size."""

Tell = Callable[[int, int], None]
"""(done, of how much), for a progress bar."""


async def pages(store: Store, table: Table, shard: int) -> AsyncIterator[list[TableRow]]:
    """All rows of one table of a shard."""
    after: Key | None = None
    while page := await store.scan(table, shard, after, PAGE_ROWS):
        yield page
        after = key_of(page[-1])


async def commits(
    store: Store, shard: int, kind: str, id: str, after_seq: int, to_seq: int
) -> AsyncIterator[list[Commit]]:
    """The history of one entity with after_seq < seq <= to_seq."""
    while page := await store.read_commits(shard, kind, id, after_seq, to_seq, PAGE_ROWS):
        yield page
        after_seq = page[-1].seq
