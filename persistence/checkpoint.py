"""What a checkpoint writes, in small transactions: a pure plan.

Per shard: its changed entities, its new named replies and its pending work, each in key order, and last, in one
transaction, the client rows (floors with their replies), the history and p. A stop anywhere leaves rows that recovery
lays the log's tail over again; p moves only at the end. The plan is made from a frozen overlay, so that a repeat writes
the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from .overlay import Dirty
from .records import ClientRow, OutboxRow, TimerRow
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
    that the last part of a shard (clients, history, p) is never split, nor are the timers of a deleted entity."""
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
        rows: defaultdict[str, list[Any]] = defaultdict(list)
        count = size = 0
        for field, row, payload, alone in _rows(part.dirty):
            if alone and count and (count >= rows_max or size + _ROW_BYTES + payload > bytes_max):
                yield TableWrite(part.shard, part.epoch, **_tuples(rows)), count, size
                rows.clear()
                count = size = 0
            rows[field].append(row)
            count += 1
            size += _ROW_BYTES + payload
        last = TableWrite(
            part.shard,
            part.epoch,
            clients=part.clients,
            forgotten_clients=part.forgotten_clients,
            forget_named_before_ms=part.forget_named_before_ms,
            end=CheckpointEnd(part.position, tuple(part.dirty.commits), part.release),
            **_tuples(rows),
        )
        size += sum(len(event.data) for commit in part.dirty.commits for event in commit.events)
        size += sum(len(reply.payload) for client in part.clients for _, reply in client.replies)
        yield last, count + len(part.clients) + 1, size


def _rows(dirty: Dirty) -> Iterator[tuple[str, Any, int, bool]]:
    """What a dirty set says, row by row: the field of a `TableWrite`, the row, the bytes of its payload, and whether it
    may stand in another transaction than the row before it.

    Each transaction leaves what it touches as it is to be in the end. So a repeat that stops half way takes nothing
    away, also when the shard's last part had been written before and p says that all is there.
    """
    for key, delta in sorted(dirty.entities.items()):
        entity = delta.row(key)
        yield "entities", entity, len(entity.state.data) if entity.state else 0, True
    for _, named in sorted(dirty.named.items()):
        yield "named", named, len(named.reply.payload), True
    for key, entries in sorted(dirty.mailbox.items()):
        for entry, mail in sorted(entries.items()):
            if mail is None:
                yield "mailbox_done", (*key, entry), 0, True
            else:
                yield "mailbox", mail, len(mail.accepted.arguments), True
    for place, attempts in sorted(dirty.attempts.items()):
        yield "mailbox_attempts", (*place, attempts), 0, True
    for number, message in sorted(dirty.outbox.items()):
        if message is None:
            yield "outbox_done", number, 0, True
        else:
            yield "outbox", OutboxRow(number, message), len(message.arguments), True
    for key in sorted({*dirty.timers_cleared, *dirty.timers}):
        cleared = key in dirty.timers_cleared
        if cleared:
            yield "timers_cleared", key, 0, True
        for name, timer in sorted(dirty.timers.get(key, {}).items()):
            if timer is not None:
                yield "timers", TimerRow(*key, timer), len(timer.arguments), not cleared
            elif not cleared:
                yield "timers_gone", (*key, name), 0, True
    for number, letter in sorted(dirty.letters.items()):
        if letter is None:
            yield "letters_gone", number, 0, True
        else:
            yield "dead_letters", letter, len(letter.letter.arguments) + len(letter.letter.error), True


def _tuples(rows: dict[str, list[Any]]) -> dict[str, Any]:
    return {field: tuple(some) for field, some in rows.items()}
