"""Pending work in PostgreSQL: mailbox entries, messages, timers and dead letters, for as long as they are pending."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from .records import DeadLetterRow, MailboxRow, OutboxRow, TimerRow
from .spi import PendingMailbox, PendingWork, TableWrite
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

if TYPE_CHECKING:
    from .postgres_link import Connection

Binding = tuple[Any, ...]

_PUT_MAILBOX = """
INSERT INTO mailbox (shard, kind, id, entry, bytes, row)
SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bytea[])
ON CONFLICT (shard, kind, id, entry) DO UPDATE SET bytes = excluded.bytes, row = excluded.row
"""
_PUT_OUTBOX = """
INSERT INTO outbox (shard, number, row) SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[])
ON CONFLICT (shard, number) DO UPDATE SET row = excluded.row
"""
_PUT_TIMERS = """
INSERT INTO timers (shard, kind, id, name, due_ms, row)
SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bytea[])
ON CONFLICT (shard, kind, id, name) DO UPDATE SET due_ms = excluded.due_ms, row = excluded.row
"""
_PUT_LETTERS = """
INSERT INTO dead_letters (shard, number, row) SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bytea[])
ON CONFLICT (shard, number) DO UPDATE SET row = excluded.row
"""
_DELETE_MAILBOX = "DELETE FROM mailbox WHERE shard = $1 AND kind = $2 AND id = $3 AND entry = $4"
_DELETE_OUTBOX = "DELETE FROM outbox WHERE shard = $1 AND number = $2"
_CLEAR_TIMERS = "DELETE FROM timers WHERE shard = $1 AND kind = $2 AND id = $3"
_DELETE_TIMERS = f"{_CLEAR_TIMERS} AND name = $4"
_DELETE_LETTERS = "DELETE FROM dead_letters WHERE shard = $1 AND number = $2"
_ENTRIES = """
SELECT m.shard, m.kind, m.id, m.entry, m.bytes, m.row
FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[]) AS k (shard, kind, id, entry)
JOIN mailbox m USING (shard, kind, id, entry)
"""


async def put(connection: Connection, sql: str, rows: Sequence[Binding]) -> None:
    """All rows in one statement, in the order of their keys."""
    if rows:
        await connection.execute(sql, *zip(*sorted(rows), strict=True))


async def delete(connection: Connection, sql: str, keys: Sequence[Binding]) -> None:
    """One statement for each key, all in one round trip."""
    if keys:
        await connection.executemany(sql, sorted(keys))


async def write_pending(connection: Connection, writes: Sequence[TableWrite]) -> None:
    """Inside a transaction: what the writes, of different shards, say of pending work, in the order in which it
    counts."""
    await delete(connection, _DELETE_MAILBOX, [_of_entity(w.shard, *place) for w in writes for place in w.mailbox_done])
    await put(connection, _PUT_MAILBOX, [_mailbox_binding(w.shard, row) for w in writes for row in w.mailbox])
    await _put_attempts(connection, writes)
    await delete(connection, _DELETE_OUTBOX, [(w.shard, number) for w in writes for number in w.outbox_done])
    messages = [(w.shard, row.number, outbox_blob(w.shard, row)) for w in writes for row in w.outbox]
    await put(connection, _PUT_OUTBOX, messages)
    await delete(connection, _CLEAR_TIMERS, [_of_entity(w.shard, *key) for w in writes for key in w.timers_cleared])
    gone = [(*_of_entity(w.shard, kind, id), name.encode()) for w in writes for kind, id, name in w.timers_gone]
    await delete(connection, _DELETE_TIMERS, gone)
    await put(connection, _PUT_TIMERS, [_timer_binding(w.shard, row) for w in writes for row in w.timers])
    await delete(connection, _DELETE_LETTERS, [(w.shard, number) for w in writes for number in w.letters_gone])
    letters = [(w.shard, row.number, letter_blob(w.shard, row)) for w in writes for row in w.dead_letters]
    await put(connection, _PUT_LETTERS, letters)


async def _put_attempts(connection: Connection, writes: Sequence[TableWrite]) -> None:
    attempts = {
        (*_of_entity(write.shard, kind, id), entry): count
        for write in writes
        for kind, id, entry, count in write.mailbox_attempts
    }
    if attempts:
        found = await connection.fetch(_ENTRIES, *zip(*sorted(attempts), strict=True))
        rows = [(row[0], mailbox_row(row[0], row[1].decode(), row[2].decode(), *row[3:]), row[:4]) for row in found]
        counted = [(shard, replace(row, attempts=attempts[key])) for shard, row, key in rows]
        await put(connection, _PUT_MAILBOX, [_mailbox_binding(shard, row) for shard, row in counted])


def _of_entity(shard: int, kind: str, id: str, *rest: Any) -> Binding:
    return shard, kind.encode(), id.encode(), *rest


def _mailbox_binding(shard: int, row: MailboxRow) -> Binding:
    return _of_entity(shard, row.kind, row.id, row.entry, len(row.accepted.arguments), mailbox_blob(shard, row))


def _timer_binding(shard: int, row: TimerRow) -> Binding:
    return _of_entity(shard, row.kind, row.id, row.timer.name.encode(), row.timer.due_ms, timer_blob(shard, row))


async def read_pending(connection: Connection, shards: Sequence[int]) -> list[PendingWork]:
    """Inside a snapshot."""
    wanted = list(shards)
    mailboxes: defaultdict[int, list[PendingMailbox]] = defaultdict(list)
    for shard, kind, id, entries, size in await connection.fetch(
        "SELECT shard, kind, id, count(*), sum(bytes)::bigint FROM mailbox WHERE shard = ANY ($1) "
        "GROUP BY shard, kind, id ORDER BY shard, kind, id",
        wanted,
    ):
        mailboxes[shard].append(PendingMailbox(kind.decode(), id.decode(), entries, size))
    outbox: defaultdict[int, list[OutboxRow]] = defaultdict(list)
    for shard, number, blob in await connection.fetch(
        "SELECT shard, number, row FROM outbox WHERE shard = ANY ($1) ORDER BY shard, number", wanted
    ):
        outbox[shard].append(outbox_row(shard, number, blob))
    letters: Counter[int] = Counter()
    for shard, count in await connection.fetch(
        "SELECT shard, count(*) FROM dead_letters WHERE shard = ANY ($1) GROUP BY shard", wanted
    ):
        letters[shard] = count
    return [PendingWork(s, tuple(mailboxes[s]), tuple(outbox[s]), letters[s]) for s in wanted]


async def read_mailbox(
    connection: Connection, shard: int, kind: str, id: str, after_entry: int, limit: int | None
) -> list[MailboxRow]:
    rows = await connection.fetch(
        "SELECT entry, bytes, row FROM mailbox WHERE shard = $1 AND kind = $2 AND id = $3 AND entry > $4 "
        "ORDER BY entry LIMIT $5",
        *_of_entity(shard, kind, id, after_entry, at_most(limit)),
    )
    return [mailbox_row(shard, kind, id, *row) for row in rows]


async def read_timers(
    connection: Connection, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
) -> list[TimerRow]:
    due_ms, kind, id, name = after
    rows = await connection.fetch(
        "SELECT kind, id, name, due_ms, row FROM timers "
        "WHERE shard = $1 AND (due_ms, kind, id, name) > ($2, $3, $4, $5) AND due_ms <= $6 "
        "ORDER BY due_ms, kind, id, name LIMIT $7",
        shard,
        due_ms,
        kind.encode(),
        id.encode(),
        name.encode(),
        through_ms,
        at_most(limit),
    )
    return [timer_row(shard, kind.decode(), id.decode(), name.decode(), *rest) for kind, id, name, *rest in rows]


async def read_dead_letters(
    connection: Connection, shard: int, after_number: int, limit: int | None
) -> list[DeadLetterRow]:
    rows = await connection.fetch(
        "SELECT number, row FROM dead_letters WHERE shard = $1 AND number > $2 ORDER BY number LIMIT $3",
        shard,
        after_number,
        at_most(limit),
    )
    return [letter_row(shard, *row) for row in rows]


def at_most(limit: int | None) -> int | None:
    """A LIMIT as PostgreSQL takes it: NULL is none, and a negative one an error."""
    return None if limit is None else max(limit, 0)
