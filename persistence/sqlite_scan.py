"""Walking over tables.db: pages of any table in order of its key."""

from __future__ import annotations

from typing import Any

from .sqlite_file import Database, Row
from .sqlite_history import read_history
from .table_shapes import SHAPES
from .tables import Key, Table, TableRow, position_after


def scan(database: Database, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
    """See `Store.scan`."""
    if table is Table.HISTORY:
        return list(read_history(database, shard, position_after(after), limit))
    read = SHAPES[table].read
    return [read(shard, *row) for row in raw_page(database, table, shard, after, limit)]


def raw_page(database: Database, table: Table, shard: int, after: tuple[Any, ...] | None, limit: int) -> list[Row]:
    """The same as it stands there: key columns, then the others. Not for history, whose pieces have no row each."""
    shape = SHAPES[table]
    key = ", ".join(shape.key)
    behind = "" if after is None else f"AND ({key}) > ({', '.join('?' * len(shape.key))})"
    columns = ", ".join((*shape.key, *shape.columns))
    return database.rows(
        f"SELECT {columns} FROM {table.value} WHERE shard = ? {behind} ORDER BY {key} LIMIT ?",  # noqa: S608 - of our own names
        (shard, *(after or ()), max(limit, 0)),
    )
