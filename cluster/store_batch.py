"""Rows of one shard, gathered into the transactions that load them into a new store."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ..persistence.export_format import DamagedExport
from ..persistence.records import Commit
from ..persistence.spi import CheckpointEnd, TableWrite
from ..persistence.tables import Table, TableRow, payload_bytes, position_of

_FIELDS = {Table.NAMED: "named"}
"""Fields of `TableWrite` that are not called as their table."""


class TableBatch:
    """What the next transaction writes of one shard."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.highest = 0
        """The highest position that a row of the shard names."""
        self._commits_to = 0
        self._clear()

    def _clear(self) -> None:
        self._rows: defaultdict[str, list[Any]] = defaultdict(list)
        self._commits: list[Commit] = []
        self.rows = 0
        self.bytes = 0

    def add(self, table: Table, row: TableRow) -> None:
        if isinstance(row, Commit):
            if row.position <= self._commits_to:
                raise DamagedExport(f"history of shard {self.shard}: {row.position} follows {self._commits_to}")
            self._commits_to = row.position
            self._commits.append(row)
        else:
            self._rows[_FIELDS.get(table, table.value)].append(row)
        self.highest = max(self.highest, position_of(row))
        self.rows += 1
        self.bytes += payload_bytes(row)

    def taken(self, epoch: int = 0, position: int = 0) -> TableWrite:
        """The write, after which the batch is empty. What has commits moves p to the last of them, so that a repeat
        does not add them twice."""
        through = max(position, self._commits_to)
        end = CheckpointEnd(through, tuple(self._commits)) if position or epoch or self._commits else None
        fields: dict[str, Any] = {field: tuple(rows) for field, rows in self._rows.items()}
        write = TableWrite(self.shard, epoch, end=end, **fields)
        self._clear()
        return write
