"""Walking over the tables in PostgreSQL: pages of any table in order of its key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .postgres_history import read_history
from .row_checks import HistoryCheck, Problems, check_rows
from .table_shapes import SHAPES
from .tables import Key, Table, TableRow, position_after

if TYPE_CHECKING:
    from .postgres_link import Connection

PAGE_ROWS = 100
"""Looked at together."""


async def scan(connection: Connection, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
    """See `Store.scan`. For history inside a snapshot."""
    if table is Table.HISTORY:
        return list(await read_history(connection, shard, position_after(after), limit))
    shape = SHAPES[table]
    page = await _page(connection, table.value, shape.key, shape.columns, shard, after, limit)
    return [shape.read(shard, *row) for row in page]


async def _page(
    connection: Connection,
    table: str,
    key: tuple[str, ...],
    columns: tuple[str, ...],
    shard: int,
    after: tuple[Any, ...] | None,
    limit: int,
) -> list[tuple[Any, ...]]:
    """Rows as they stand there: key columns, then the others."""
    names, width = ", ".join(key), len(key)
    places = ", ".join(f"${number}" for number in range(3, 3 + width))
    behind = "" if after is None else f"AND ({names}) > ({places})"
    rows = await connection.fetch(
        f"SELECT {', '.join((*key, *columns))} FROM {table} WHERE shard = $1 {behind} ORDER BY {names} LIMIT $2",  # noqa: S608 - of our own names
        shard,
        max(limit, 0),
        *(part.encode() if isinstance(part, str) else part for part in after or ()),
    )
    return [(*map(_named, row[:width]), *row[width:]) for row in map(tuple, rows)]


def _named(part: int | bytes) -> int | str:
    return part.decode() if isinstance(part, bytes) else part


# ---- checking ------------------------------------------------------------------------------------------------------


async def check_shard(connection: Connection, shard: int) -> list[str]:
    """What does not prove itself of a shard's rows."""
    found: list[str] = []
    for table, shape in SHAPES.items():
        problems = Problems()
        async for page in _pages(connection, table.value, shape.key, shape.columns, shard):
            check_rows(problems, table, shard, page)
        found += problems.lines
    problems = Problems()
    history = HistoryCheck(shard, problems)
    async for page in _pages(connection, "history", ("first_position",), ("last_position", "row"), shard):
        for row in page:
            history.piece(*row)
    key, columns = ("kind", "id", "last_seq"), ("first_seq", "first_position")
    async for page in _pages(connection, "history_by_entity", key, columns, shard):
        for row in page:
            history.index(*row)
    history.end()
    return found + problems.lines


async def _pages(
    connection: Connection, table: str, key: tuple[str, ...], columns: tuple[str, ...], shard: int
) -> AsyncIterator[list[tuple[Any, ...]]]:
    after: tuple[Any, ...] | None = None
    while page := await _page(connection, table, key, columns, shard, after, PAGE_ROWS):
        yield page
        after = page[-1][: len(key)]
