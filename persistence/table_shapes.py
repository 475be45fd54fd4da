"""The tables in SQL: which columns name a row, which it has besides, and what it reads as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .table_rows import client_row, entity_row, letter_row, mailbox_row, named_row, outbox_row, timer_row
from .tables import Table


class Shape(msgspec.Struct, frozen=True):
    """A table in SQL with one blob per row; history, which is packed, has none."""

    key: tuple[str, ...]
    """The columns behind `shard` that name a row."""
    columns: tuple[str, ...]
    """The others."""
    read: Callable[..., Any]
    """(shard, *key, *columns) -> the row. Raises `CorruptRecord` when the row does not prove itself."""


SHAPES: Mapping[Table, Shape] = {
    Table.ENTITIES: Shape(("kind", "id"), ("seq", "row"), entity_row),
    Table.CLIENTS: Shape(("client",), ("floor", "row"), client_row),
    Table.NAMED: Shape(("kind", "id", "command_id"), ("time_ms", "row"), named_row),
    Table.MAILBOX: Shape(("kind", "id", "entry"), ("bytes", "row"), mailbox_row),
    Table.OUTBOX: Shape(("number",), ("row",), outbox_row),
    Table.TIMERS: Shape(("kind", "id", "name"), ("due_ms", "row"), timer_row),
    Table.DEAD_LETTERS: Shape(("number",), ("row",), letter_row),
}
