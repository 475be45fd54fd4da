"""The rows of the tables as the stores keep them: a struct behind a checksum that is bound to its place.

A row's columns are what SQL compares; its blob is what it says. Reading checks that the two agree, so that a row that
was moved or half overwritten is reported as corrupt and never read as another one's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .records import ClientRow, DeadLetterRow, EntityRow, MailboxRow, NamedReply, OutboxRow, TimerRow
from .row_codec import check_same, decoded, encoded
from .spi import ShardRow

_shard_decoder = msgspec.msgpack.Decoder(ShardRow)
_entity_decoder = msgspec.msgpack.Decoder(EntityRow)
_client_decoder = msgspec.msgpack.Decoder(ClientRow)
_named_decoder = msgspec.msgpack.Decoder(NamedReply)
_mailbox_decoder = msgspec.msgpack.Decoder(MailboxRow)
_outbox_decoder = msgspec.msgpack.Decoder(OutboxRow)
_timer_decoder = msgspec.msgpack.Decoder(TimerRow)
_letter_decoder = msgspec.msgpack.Decoder(DeadLetterRow)


def shard_place(shard: int) -> str:
    return f"shard {shard}"


def shard_blob(row: ShardRow) -> bytes:
    return encoded(row, shard_place(row.shard))


def shard_row(shard: int, blob: Any) -> ShardRow:
    return decoded(_shard_decoder, blob, shard_place(shard))


def entity_blob(shard: int, row: EntityRow) -> bytes:
    return encoded(row, _entity_place(shard, row.kind, row.id))


def entity_row(shard: int, kind: str, id: str, seq: Any, blob: Any) -> EntityRow:
    place = _entity_place(shard, kind, id)
    row = decoded(_entity_decoder, blob, place)
    check_same(place, (row.kind, row.id, row.seq), (kind, id, seq))
    return row


def client_blob(shard: int, row: ClientRow) -> bytes:
    return encoded(row, _client_place(shard, row.client))


def client_row(shard: int, client: int, floor: Any, blob: Any) -> ClientRow:
    place = _client_place(shard, client)
    row = decoded(_client_decoder, blob, place)
    check_same(place, (row.client, row.floor), (client, floor))
    return row


def named_blob(shard: int, row: NamedReply) -> bytes:
    return encoded(row, _named_place(shard, row.kind, row.id, row.command_id))


def named_row(shard: int, kind: str, id: str, command_id: str, time_ms: Any, blob: Any) -> NamedReply:
    place = _named_place(shard, kind, id, command_id)
    row = decoded(_named_decoder, blob, place)
    check_same(place, (row.kind, row.id, row.command_id, row.time_ms), (kind, id, command_id, time_ms))
    return row


def mailbox_blob(shard: int, row: MailboxRow) -> bytes:
    return encoded(row, _mailbox_place(shard, row.kind, row.id, row.entry))


def mailbox_row(shard: int, kind: str, id: str, entry: int, size: Any, blob: Any) -> MailboxRow:
    place = _mailbox_place(shard, kind, id, entry)
    row = decoded(_mailbox_decoder, blob, place)
    check_same(place, (row.kind, row.id, row.entry, len(row.accepted.arguments)), (kind, id, entry, size))
    return row


def outbox_blob(shard: int, row: OutboxRow) -> bytes:
    return encoded(row, _outbox_place(shard, row.number))


def outbox_row(shard: int, number: int, blob: Any) -> OutboxRow:
    place = _outbox_place(shard, number)
    row = decoded(_outbox_decoder, blob, place)
    check_same(place, row.number, number)
    return row


def timer_blob(shard: int, row: TimerRow) -> bytes:
    return encoded(row, _timer_place(shard, row.kind, row.id, row.timer.name))


def timer_row(shard: int, kind: str, id: str, name: str, due_ms: Any, blob: Any) -> TimerRow:
    place = _timer_place(shard, kind, id, name)
    row = decoded(_timer_decoder, blob, place)
    check_same(place, (row.kind, row.id, row.timer.name, row.timer.due_ms), (kind, id, name, due_ms))
    return row


def letter_blob(shard: int, row: DeadLetterRow) -> bytes:
    return encoded(row, _letter_place(shard, row.number))


def letter_row(shard: int, number: int, blob: Any) -> DeadLetterRow:
    place = _letter_place(shard, number)
    row = decoded(_letter_decoder, blob, place)
    check_same(place, row.number, number)
    return row


def _entity_place(shard: int, kind: str, id: str) -> str:
    return f"entity {kind}/{id!r} of shard {shard}"


def _client_place(shard: int, client: int) -> str:
    return f"client {client} of shard {shard}"


def _named_place(shard: int, kind: str, id: str, command_id: str) -> str:
    return f"reply {command_id!r} of {kind}/{id!r} in shard {shard}"


def _mailbox_place(shard: int, kind: str, id: str, entry: int) -> str:
    return f"mailbox entry {entry} of {kind}/{id!r} in shard {shard}"


def _outbox_place(shard: int, number: int) -> str:
    return f"message {number} in the outbox of shard {shard}"


def _timer_place(shard: int, kind: str, id: str, name: str) -> str:
    return f"timer {name!r} of {kind}/{id!r} in shard {shard}"


def _letter_place(shard: int, number: int) -> str:
    return f"dead letter {number} of shard {shard}"
