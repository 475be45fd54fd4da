"""What a checkpoint writes, in small transactions: a pure plan.

Per shard: its changed entities in key order, then its new named replies, and last, in one transaction, the client rows
(floors with their replies), the history and p. A stop anywhere leaves rows that recovery lays the log's tail over
again; p moves only at the end. The plan is made from a frozen overlay, so that a repeat writes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from .overlay import Dirty
from .records import ClientRow, EntityRow, NamedReply
from .spi import CheckpointEnd, TableWrite

_ROW_BYTES = 100
"""Keys and headers of a row, roughly."""


class ShardCheckpoint(msgspec.Struct, frozen=True):
    """One shard's part."""

    shard: int
    epoch: int
    position: int
    """The committed position when the checkpoint began: p afterwards."""
    dirty: Dirty
    clients: tuple[ClientRow, ...]
    forgotten_clients: tuple[int, ...] = ()
    forget_named_before_ms: int = 0
    release: bool = False


def plan(parts: Iterable[ShardCheckpoint], rows_max: int, bytes_max: int) -> Iterator[list[TableWrite]]:
    """Yield the transactions in order. A transaction holds at most `rows_max` rows and about `bytes_max` bytes, except
    that the last part of a shard (clients, history, p) is never split."""
    transaction: list[TableWrite] = []
    rows = size = 0
    for write, write_rows, write_size in _writes(parts, rows_max, bytes_max):
        if transaction and (rows + write_rows > rows_max or size + write_size > bytes_max):
            yield transaction
            transaction, rows, size = [], 0, 0
        transaction.append(write)
        rows += write_rows
        size += write_size
    if transaction:
        yield transaction


def _writes(parts: Iterable[ShardCheckpoint], rows_max: int, bytes_max: int) -> Iterator[tuple[TableWrite, int, int]]:
    """The pieces that may stand in transactions of their own, with their rows and bytes."""
    for part in sorted(parts, key=lambda part: part.shard):
        entities: list[EntityRow] = []
        size = 0
        for key, delta in sorted(part.dirty.entities.items()):
            row = delta.row(key)
            row_size = _ROW_BYTES + (len(row.state.data) if row.state else 0)
            if entities and (len(entities) >= rows_max or size + row_size > bytes_max):
                yield TableWrite(part.shard, part.epoch, entities=tuple(entities)), len(entities), size
                entities, size = [], 0
            entities.append(row)
            size += row_size
        named = [part.dirty.named[key] for key in sorted(part.dirty.named)]
        while len(named) + len(entities) > rows_max:
            chunk, named = named[:rows_max], named[rows_max:]
            yield TableWrite(part.shard, part.epoch, named=tuple(chunk)), len(chunk), _named_bytes(chunk)
        last = TableWrite(
            part.shard,
            part.epoch,
            entities=tuple(entities),
            clients=part.clients,
            forgotten_clients=part.forgotten_clients,
            named=tuple(named),
            forget_named_before_ms=part.forget_named_before_ms,
            end=CheckpointEnd(part.position, tuple(part.dirty.commits), part.release),
        )
        size += _named_bytes(named)
        size += sum(len(event.data) for commit in part.dirty.commits for event in commit.events)
        size += sum(len(reply.payload) for client in part.clients for _, reply in client.replies)
        yield last, len(entities) + len(part.clients) + len(named) + 1, size


def _named_bytes(named: list[NamedReply]) -> int:
    return sum(_ROW_BYTES + len(row.reply.payload) for row in named)
