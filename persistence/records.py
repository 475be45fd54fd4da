"""What is written: the records of the log and the rows of the tables, and their encoding.

A log row is one batch: the records of many commands of many shards, in the order in which they were staged. Every
record carries its shard and that shard's next position, so that recovery can lay the tails of several logs over the
tables in one order. The structs are MessagePack arrays; a field may only ever be appended, with a default.
"""

from __future__ import annotations

import msgspec

from ..actors.errors import CorruptRecord
from ..actors.stored import StoredEvent, StoredState
from .checksum import unwrap, wrap


class RecordedReply(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The remembered answer of one command."""

    status: int
    payload: bytes
    digest: int
    """xxh3_64 of (kind, ID, method, arguments): catches an ID that is used again for different work."""


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


class Commit(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One commit of an event-sourced entity, as history keeps it."""

    position: int
    kind: str
    id: str
    seq: int
    time_ms: int
    events: tuple[StoredEvent, ...]


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
