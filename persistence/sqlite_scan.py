"""Walking over tables.db: pages of any table in order of its key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .row_checks import HistoryCheck, Problems, check_rows
from .sqlite_file import Database, Row
from .sqlite_history import read_history
from .table_shapes import SHAPES
from .tables import Key, Table, TableRow, position_after

PAGE_ROWS = 100
"""Looked at together."""


def scan(database: Database, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
    """See `Store.scan`."""
    if table is Table.HISTORY:
        return list(read_history(database, shard, position_after(after), limit))
    shape = SHAPES[table]
    page = _page(database, table.value, shape.key, shape.columns, shard, after, limit)
    return [shape.read(shard, *row) for row in page]


def _page(
    database: Database,
    table: str,
    key: tuple[str, ...],
    columns: tuple[str, ...],
    shard: int,
    after: tuple[Any, ...] | None,
    limit: int,
) -> list[Row]:
    """Rows as they stand there: key columns, then the others."""
    names = ", ".join(key)
    behind = "" if after is None else f"AND ({names}) > ({', '.join('?' * len(key))})"
    return database.rows(
        f"SELECT {', '.join((*key, *columns))} FROM {table} WHERE shard = ? {behind} ORDER BY {names} LIMIT ?",  # noqa: S608 - of our own names
        (shard, *(after or ()), max(limit, 0)),
    )


# ---- checking ------------------------------------------------------------------------------------------------------


def check_shard(database: Database, shard: int) -> list[str]:
    """What does not prove itself of a shard's rows."""
    found: list[str] = []
    for table in SHAPES:
        problems = Problems()
        for page in _pages(table.value, SHAPES[table].key, SHAPES[table].columns, database, shard):
            check_rows(problems, table, shard, page)
        found += problems.lines
    problems = Problems()
    history = HistoryCheck(shard, problems)
    for page in _pages("history", ("first_position",), ("last_position", "row"), database, shard):
        for row in page:
            history.piece(*row)
    key, columns = ("kind", "id", "last_seq"), ("first_seq", "first_position")
    for page in _pages("history_by_entity", key, columns, database, shard):
        for row in page:
            history.index(*row)
    history.end()
    return found + problems.lines


def _pages(
    table: str, key: tuple[str, ...], columns: tuple[str, ...], database: Database, shard: int
) -> Iterator[list[Row]]:
    after: Row | None = None
    while page := _page(database, table, key, columns, shard, after, PAGE_ROWS):
        yield page
        after = page[-1][: len(key)]
