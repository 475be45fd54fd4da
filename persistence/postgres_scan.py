"""Walking over the tables in PostgreSQL: pages of any table in order of its key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .postgres_history import read_history
from .table_shapes import SHAPES
from .tables import Key, Table, TableRow, position_after

if TYPE_CHECKING:
    from .postgres_link import Connection


async def scan(connection: Connection, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
    """See `Store.scan`. For history inside a snapshot."""
    if table is Table.HISTORY:
        return list(await read_history(connection, shard, position_after(after), limit))
    read = SHAPES[table].read
    return [read(shard, *row) for row in await raw_page(connection, table, shard, after, limit)]


async def raw_page(
    connection: Connection, table: Table, shard: int, after: tuple[Any, ...] | None, limit: int
) -> list[tuple[Any, ...]]:
    """The same as it stands there: key columns, then the others. Not for history, whose pieces have no row each."""
    shape = SHAPES[table]
    key, width = ", ".join(shape.key), len(shape.key)
    places = ", ".join(f"${number}" for number in range(3, 3 + width))
    behind = "" if after is None else f"AND ({key}) > ({places})"
    columns = ", ".join((*shape.key, *shape.columns))
    rows = await connection.fetch(
        f"SELECT {columns} FROM {table.value} WHERE shard = $1 {behind} ORDER BY {key} LIMIT $2",  # noqa: S608 - of our own names
        shard,
        max(limit, 0),
        *(part.encode() if isinstance(part, str) else part for part in after or ()),
    )
    return [(*map(_named, row[:width]), *row[width:]) for row in map(tuple, rows)]


def _named(part: int | bytes) -> int | str:
    return part.decode() if isinstance(part, bytes) else part
