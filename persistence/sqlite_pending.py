"""Pending work in tables.db: mailbox entries, messages, timers and dead letters, for as long as they are pending."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from .records import DeadLetterRow, MailboxRow, OutboxRow, TimerRow
from .spi import PendingMailbox, PendingWork, TableWrite
from .sqlite_file import Database
from .sqlite_rows import check_same, decoded, encoded

_mailbox_decoder = msgspec.msgpack.Decoder(MailboxRow)
_outbox_decoder = msgspec.msgpack.Decoder(OutboxRow)
_timer_decoder = msgspec.msgpack.Decoder(TimerRow)
_letter_decoder = msgspec.msgpack.Decoder(DeadLetterRow)

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
                [(shard, row.number, encoded(row, _outbox_place(shard, row.number))) for row in write.outbox],
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
                [(shard, row.number, encoded(row, _letter_place(shard, row.number))) for row in write.dead_letters],
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
    place = _mailbox_place(shard, row.kind, row.id, row.entry)
    return shard, row.kind, row.id, row.entry, len(row.accepted.arguments), encoded(row, place)


def _timer_binding(shard: int, row: TimerRow) -> tuple[Any, ...]:
    name = row.timer.name
    place = _timer_place(shard, row.kind, row.id, name)
    return shard, row.kind, row.id, name, row.timer.due_ms, encoded(row, place)


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
    found = []
    for number, blob in database.rows("SELECT number, row FROM outbox WHERE shard = ? ORDER BY number", (shard,)):
        place = _outbox_place(shard, number)
        row = decoded(_outbox_decoder, blob, place)
        check_same(place, row.number, number)
        found.append(row)
    return tuple(found)


def read_mailbox(
    database: Database, shard: int, kind: str, id: str, after_entry: int, limit: int | None
) -> list[MailboxRow]:
    return _mailbox(database, shard, kind, id, after_entry, _NO_LIMIT if limit is None else max(limit, 0))


def _mailbox(database: Database, shard: int, kind: str, id: str, after_entry: int, limit: int) -> list[MailboxRow]:
    found = []
    for entry, size, blob in database.rows(
        "SELECT entry, bytes, row FROM mailbox WHERE shard = ? AND kind = ? AND id = ? AND entry > ? "
        "ORDER BY entry LIMIT ?",
        (shard, kind, id, after_entry, limit),
    ):
        place = _mailbox_place(shard, kind, id, entry)
        row = decoded(_mailbox_decoder, blob, place)
        check_same(place, (row.kind, row.id, row.entry, len(row.accepted.arguments)), (kind, id, entry, size))
        found.append(row)
    return found


def read_timers(
    database: Database, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
) -> list[TimerRow]:
    found = []
    for kind, id, name, due_ms, blob in database.rows(
        "SELECT kind, id, name, due_ms, row FROM timers "
        "WHERE shard = ? AND (due_ms, kind, id, name) > (?, ?, ?, ?) AND due_ms <= ? "
        "ORDER BY due_ms, kind, id, name LIMIT ?",
        (shard, *after, through_ms, max(limit, 0)),
    ):
        place = _timer_place(shard, kind, id, name)
        row = decoded(_timer_decoder, blob, place)
        check_same(place, (row.kind, row.id, row.timer.name, row.timer.due_ms), (kind, id, name, due_ms))
        found.append(row)
    return found


def read_dead_letters(database: Database, shard: int, after_number: int, limit: int | None) -> list[DeadLetterRow]:
    found = []
    for number, blob in database.rows(
        "SELECT number, row FROM dead_letters WHERE shard = ? AND number > ? ORDER BY number LIMIT ?",
        (shard, after_number, _NO_LIMIT if limit is None else max(limit, 0)),
    ):
        place = _letter_place(shard, number)
        row = decoded(_letter_decoder, blob, place)
        check_same(place, row.number, number)
        found.append(row)
    return found


def _mailbox_place(shard: int, kind: str, id: str, entry: int) -> str:
    return f"mailbox entry {entry} of {kind}/{id!r} in shard {shard}"


def _outbox_place(shard: int, number: int) -> str:
    return f"message {number} in the outbox of shard {shard}"


def _timer_place(shard: int, kind: str, id: str, name: str) -> str:
    return f"timer {name!r} of {kind}/{id!r} in shard {shard}"


def _letter_place(shard: int, number: int) -> str:
    return f"dead letter {number} of shard {shard}"
