"""Pending work in tables.db: mailbox entries, messages, timers and dead letters, for as long as they are pending."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from .records import DeadLetterRow, MailboxRow, OutboxRow, TimerRow
from .spi import PendingMailbox, PendingWork, TableWrite
from .sqlite_file import Database
from .table_rows import (
    letter_blob,
    letter_row,
    mailbox_blob,
    mailbox_row,
    outbox_blob,
    outbox_row,
    timer_blob,
    timer_row,
)

_PUT_MAILBOX = "INSERT OR REPLACE INTO mailbox (shard, kind, id, entry, bytes, row) VALUES (?, ?, ?, ?, ?, ?)"
_WHAT_WAITS = """
SELECT value,
       EXISTS (SELECT 1 FROM mailbox WHERE shard = value),
       EXISTS (SELECT 1 FROM outbox WHERE shard = value),
       (SELECT count(*) FROM dead_letters WHERE shard = value)
FROM json_each(?) ORDER BY key
"""
_NO_LIMIT = -1


class PendingRows:
    """What a table write says of pending work, as statements with the rows to bind, in the order in which they run."""

    def __init__(self, write: TableWrite) -> None:
        shard = write.shard
        self._statements: list[tuple[str, Sequence[Sequence[Any]]]] = [
            (
                "DELETE FROM mailbox WHERE shard = ? AND kind = ? AND id = ? AND entry = ?",
                [(shard, *place) for place in write.mailbox_done],
            ),
            (_PUT_MAILBOX, [_mailbox_binding(shard, row) for row in write.mailbox]),
            (
                "DELETE FROM outbox WHERE shard = ? AND number = ?",
                [(shard, number) for number in write.outbox_done],
            ),
            (
                "INSERT OR REPLACE INTO outbox (shard, number, row) VALUES (?, ?, ?)",
                [(shard, row.number, outbox_blob(shard, row)) for row in write.outbox],
            ),
            (
                "DELETE FROM timers WHERE shard = ? AND kind = ? AND id = ?",
                [(shard, *key) for key in write.timers_cleared],
            ),
            (
                "DELETE FROM timers WHERE shard = ? AND kind = ? AND id = ? AND name = ?",
                [(shard, *place) for place in write.timers_gone],
            ),
            (
                "INSERT OR REPLACE INTO timers (shard, kind, id, name, due_ms, row) VALUES (?, ?, ?, ?, ?, ?)",
                [_timer_binding(shard, row) for row in write.timers],
            ),
            (
                "DELETE FROM dead_letters WHERE shard = ? AND number = ?",
                [(shard, number) for number in write.letters_gone],
            ),
            (
                "INSERT OR REPLACE INTO dead_letters (shard, number, row) VALUES (?, ?, ?)",
                [(shard, row.number, letter_blob(shard, row)) for row in write.dead_letters],
            ),
        ]
        self._shard = shard
        self._attempts = write.mailbox_attempts

    def write(self, database: Database) -> None:
        """Inside a transaction."""
        for sql, rows in self._statements:
            if rows:
                database.write_all(sql, rows)
        for kind, id, entry, attempts in self._attempts:
            for row in _mailbox(database, self._shard, kind, id, entry - 1, 1):
                if row.entry == entry:
                    database.write(_PUT_MAILBOX, _mailbox_binding(self._shard, replace(row, attempts=attempts)))


def _mailbox_binding(shard: int, row: MailboxRow) -> tuple[Any, ...]:
    return shard, row.kind, row.id, row.entry, len(row.accepted.arguments), mailbox_blob(shard, row)


def _timer_binding(shard: int, row: TimerRow) -> tuple[Any, ...]:
    return shard, row.kind, row.id, row.timer.name, row.timer.due_ms, timer_blob(shard, row)


def read_pending(database: Database, shards: Sequence[int]) -> list[PendingWork]:
    with database.snapshot():
        # In one statement for all of them: at a start most shards have nothing, and there are hundreds.
        return [
            PendingWork(
                shard,
                _mailboxes(database, shard) if has_mail else (),
                _outbox(database, shard) if has_messages else (),
                letters,
            )
            for shard, has_mail, has_messages, letters in database.rows(_WHAT_WAITS, (json.dumps(list(shards)),))
        ]


def _mailboxes(database: Database, shard: int) -> tuple[PendingMailbox, ...]:
    rows = database.rows(
        "SELECT kind, id, count(*), sum(bytes) FROM mailbox WHERE shard = ? GROUP BY kind, id ORDER BY kind, id",
        (shard,),
    )
    return tuple(PendingMailbox(*row) for row in rows)


def _outbox(database: Database, shard: int) -> tuple[OutboxRow, ...]:
    rows = database.rows("SELECT number, row FROM outbox WHERE shard = ? ORDER BY number", (shard,))
    return tuple(outbox_row(shard, *row) for row in rows)


def read_mailbox(
    database: Database, shard: int, kind: str, id: str, after_entry: int, limit: int | None
) -> list[MailboxRow]:
    return _mailbox(database, shard, kind, id, after_entry, _NO_LIMIT if limit is None else max(limit, 0))


def _mailbox(database: Database, shard: int, kind: str, id: str, after_entry: int, limit: int) -> list[MailboxRow]:
    rows = database.rows(
        "SELECT entry, bytes, row FROM mailbox WHERE shard = ? AND kind = ? AND id = ? AND entry > ? "
        "ORDER BY entry LIMIT ?",
        (shard, kind, id, after_entry, limit),
    )
    return [mailbox_row(shard, kind, id, *row) for row in rows]


def read_timers(
    database: Database, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
) -> list[TimerRow]:
    rows = database.rows(
        "SELECT kind, id, name, due_ms, row FROM timers "
        "WHERE shard = ? AND (due_ms, kind, id, name) > (?, ?, ?, ?) AND due_ms <= ? "
        "ORDER BY due_ms, kind, id, name LIMIT ?",
        (shard, *after, through_ms, max(limit, 0)),
    )
    return [timer_row(shard, *row) for row in rows]


def read_dead_letters(database: Database, shard: int, after_number: int, limit: int | None) -> list[DeadLetterRow]:
    rows = database.rows(
        "SELECT number, row FROM dead_letters WHERE shard = ? AND number > ? ORDER BY number LIMIT ?",
        (shard, after_number, _NO_LIMIT if limit is None else max(limit, 0)),
    )
    return [letter_row(shard, *row) for row in rows]
