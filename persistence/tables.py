"""The tables of a store as upkeep sees them: what they are called, what their rows are, and the key that orders them.

What a shard holds is the sum of these tables and its own row. Everything that walks over a whole store (an export, a
check, figures) walks over them, so that a table that is added here is in all of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from .records import (
    ClientRow,
    Commit,
    DeadLetterRow,
    EntityRow,
    MailboxRow,
    NamedReply,
    OutboxRow,
    TimerRow,
    outbox_number,
)

TableRow = EntityRow | Commit | ClientRow | NamedReply | MailboxRow | OutboxRow | TimerRow | DeadLetterRow
Key = tuple[int | str, ...]
"""What names a row within its shard and table."""


class Table(enum.StrEnum):
    """By their names in SQL."""

    ENTITIES = "entities"
    HISTORY = "history"
    """One row per commit, whatever the store packs."""
    CLIENTS = "clients"
    NAMED = "named_replies"
    MAILBOX = "mailbox"
    OUTBOX = "outbox"
    TIMERS = "timers"
    DEAD_LETTERS = "dead_letters"


ROW_TYPES: Mapping[Table, type[TableRow]] = {
    Table.ENTITIES: EntityRow,
    Table.HISTORY: Commit,
    Table.CLIENTS: ClientRow,
    Table.NAMED: NamedReply,
    Table.MAILBOX: MailboxRow,
    Table.OUTBOX: OutboxRow,
    Table.TIMERS: TimerRow,
    Table.DEAD_LETTERS: DeadLetterRow,
}


def key_of(row: TableRow) -> Key:
    match row:
        case EntityRow():
            return row.kind, row.id
        case Commit():
            return (row.position,)
        case ClientRow():
            return (row.client,)
        case NamedReply():
            return row.kind, row.id, row.command_id
        case MailboxRow():
            return row.kind, row.id, row.entry
        case TimerRow():
            return row.kind, row.id, row.timer.name
        case OutboxRow() | DeadLetterRow():
            return (row.number,)


def position_after(after: Key | None) -> int:
    """What `Store.read_history` takes for a key of history."""
    if after is None:
        return 0
    (position,) = after
    assert isinstance(position, int)
    return position


def position_of(row: TableRow) -> int:
    """The position in its shard that a row names; 0 for those that name none."""
    match row:
        case Commit():
            return row.position
        case MailboxRow():
            return row.entry
        case DeadLetterRow():
            return row.number
        case OutboxRow():
            return row.number // outbox_number(1, 0)
        case _:
            return 0


def payload_bytes(row: TableRow) -> int:
    """What a row carries of its users', in bytes."""
    match row:
        case EntityRow():
            return 0 if row.state is None else len(row.state.data)
        case Commit():
            return sum(len(event.data) for event in row.events)
        case ClientRow():
            return sum(len(reply.payload) for _number, reply in row.replies)
        case NamedReply():
            return len(row.reply.payload)
        case MailboxRow():
            return len(row.accepted.arguments)
        case OutboxRow():
            return len(row.message.arguments)
        case TimerRow():
            return len(row.timer.arguments)
        case DeadLetterRow():
            return len(row.letter.arguments) + len(row.letter.error)
