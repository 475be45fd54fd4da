"""What is written: the records of the log and the rows of the tables, and their encoding.

A log row is one batch: the records of many commands of many shards, in the order in which they were staged. Every
record carries its shard and that shard's next position, so that recovery can lay the tails of several logs over the
tables in one order. The structs are MessagePack arrays; a field may only ever be appended, with a default.
"""

from __future__ import annotations

import msgspec

from ..actors.errors import CorruptRecord
from ..actors.stored import StoredEvent, StoredMessage, StoredState, StoredTimer
from .checksum import unwrap, wrap


class RecordedReply(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The remembered answer of one command."""

    status: int
    payload: bytes
    digest: int
    """xxh3_64 of (kind, ID, method, arguments): catches an ID that is used again for different work."""


class Accepted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A command that the mailbox took over from its sender: it runs, whoever dies. Its entity is the record's, its
    number in the mailbox the record's position."""

    method: str
    arguments: bytes
    client: int
    """Whose it was: a client's session, or a stream between shards (`stream_of`)."""
    number: int
    """That client's number for it. With `client` the root of the IDs that its own asks take."""
    command_id: str = ""


class DeadLetter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A command that will not be tried again by itself. Its entity is the record's."""

    method: str
    arguments: bytes
    client: int
    number: int
    command_id: str
    attempts: int
    reason: str
    """`failed` (too often), `rejected`, `invalid` (no such kind, handler, or arguments that do not fit), `killed` (its
    host died too often while it ran)."""
    error: str
    """The message of the last failure; never the payload."""
    time_ms: int = 0
    """When it died."""
    timer: str = ""
    """The name of the timer whose tick it was."""


class Delivery(msgspec.Struct, array_like=True, gc=False):
    """What a record says about work that outlives its host: accepted commands, messages, timers, dead letters."""

    accepted: Accepted | None = None
    done: int = 0
    """The mailbox entry (its number) that this record ends."""
    attempts: tuple[tuple[int, int], ...] = ()
    """(mailbox entry of this entity, how often it was begun without success)."""
    outbox: tuple[StoredMessage, ...] = ()
    """Message i of the record at position p has the number `outbox_number(p, i)`."""
    delivered: tuple[int, ...] = ()
    """Messages of this shard's outbox that their receivers have taken over."""
    timers: tuple[StoredTimer, ...] = ()
    """Set or changed; at most one per name. Laid after `deleted` of the record and after `timers_gone`."""
    timers_gone: tuple[str, ...] = ()
    dead: DeadLetter | None = None
    """Buried under the record's position."""
    letter_gone: int = 0
    """The dead letter of this shard that was replayed or dropped."""


class Record(msgspec.Struct, array_like=True, gc=False):
    """What one turn did, or what a shard must remember. Fields that do not apply keep their defaults."""

    shard: int
    position: int
    """1, 2, 3 ... per shard, without gaps, over all owners."""
    kind: str = ""
    """The entity; empty when the record belongs to none."""
    id: str = ""
    seq: int = 0
    """The entity's version after this record; 0 when the entity did not change."""
    time_ms: int = 0
    state: StoredState | None = None
    events: tuple[StoredEvent, ...] = ()
    deleted: bool = False
    client: int = 0
    """The client whose command this was; 0 for none."""
    number: int = 0
    floor: int = 0
    """The client's floor in this shard when the record was staged."""
    reply: RecordedReply | None = None
    """Recorded under (client, number), and under `command_id` when there is one and the command succeeded."""
    command_id: str = ""
    riders: tuple[tuple[int, RecordedReply], ...] = ()
    """Replies without effect of the same client that were only in memory so far (number, reply)."""
    delivery: Delivery | None = None


class EntityRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The tables' newest knowledge of one entity. A deleted entity keeps its row, for its `seq`."""

    kind: str
    id: str
    seq: int
    state: StoredState | None
    """None: deleted, or event-sourced without a snapshot yet."""
    state_seq: int
    """The version that `state` shows; events above it are to be applied. Equals `seq` for a plain Entity."""
    deleted: bool = False
    time_ms: int = 0


class ClientRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one shard remembers of one client: its floor and the replies at or above it."""

    client: int
    floor: int
    replies: tuple[tuple[int, RecordedReply], ...]


class NamedReply(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The reply under a caller-supplied command ID, kept per entity for the retention time."""

    kind: str
    id: str
    command_id: str
    reply: RecordedReply
    time_ms: int


class MailboxRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An accepted command that has not run. In order of `entry` per entity."""

    kind: str
    id: str
    entry: int
    """The position of the record that accepted it."""
    accepted: Accepted
    attempts: int = 0
    time_ms: int = 0


class OutboxRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message that its receiver has not taken over yet."""

    number: int
    message: StoredMessage


class TimerRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    kind: str
    id: str
    timer: StoredTimer


class DeadLetterRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    number: int
    """The position of the record that buried it: with the shard its name."""
    kind: str
    id: str
    letter: DeadLetter


class Commit(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One commit of an event-sourced entity, as history keeps it."""

    position: int
    kind: str
    id: str
    seq: int
    time_ms: int
    events: tuple[StoredEvent, ...]


OUTBOX_INDEX_BITS = 16
MESSAGES_PER_RECORD_MAX = (1 << OUTBOX_INDEX_BITS) - 1
STREAMS = 1 << 62
"""Clients from here on are streams: the messages of one sending shard to one receiving shard. Sessions count from 1."""


def outbox_number(position: int, index: int) -> int:
    """The number of a message: grows in the order in which the shard's messages were staged, and never resets."""
    return position << OUTBOX_INDEX_BITS | index


def stream_of(sending_shard: int) -> int:
    """The client that the receiving shard knows the messages of `sending_shard` under."""
    return STREAMS + sending_shard


def is_stream(client: int) -> bool:
    return client >= STREAMS


_records_encoder = msgspec.msgpack.Encoder()
_records_decoder = msgspec.msgpack.Decoder(list[Record])


def log_place(incarnation: int, n: int) -> str:
    return f"log {incarnation}, row {n}"


def encode_batch(records: list[Record], incarnation: int, n: int) -> bytes:
    """The content of log row `n`: checksummed, and bound to that row."""
    return wrap(_records_encoder.encode(records), log_place(incarnation, n))


def decode_batch(blob: bytes, incarnation: int, n: int) -> list[Record]:
    """The records of a log row. Raises `CorruptRecord` naming the row."""
    place = log_place(incarnation, n)
    try:
        return _records_decoder.decode(unwrap(blob, place))
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise CorruptRecord(f"{place}: {error}") from None
