"""Rows for tests of stores: short to write, and each different from its neighbours."""

from __future__ import annotations

from msgspec.structs import replace

from atoll.actors.stored import StoredEvent, StoredMessage, StoredState, StoredTimer
from atoll.persistence.records import (
    Accepted,
    ClientRow,
    Commit,
    DeadLetter,
    DeadLetterRow,
    EntityRow,
    MailboxRow,
    NamedReply,
    OutboxRow,
    Record,
    RecordedReply,
    TimerRow,
    encode_batch,
)
from atoll.persistence.spi import Assignment, CheckpointEnd, ShardRow, Store, TableWrite

KIND = "Account"


def batch(incarnation: int, n: int, *records: Record) -> bytes:
    """The content of a log row; by default one record whose position is n."""
    return encode_batch(list(records) or [Record(shard=0, position=n, kind=KIND, id="alice", seq=n)], incarnation, n)


def entity(id: str, seq: int, data: bytes | None = None, *, kind: str = KIND, deleted: bool = False) -> EntityRow:
    """A plain entity's row: its state says which seq it is of."""
    state = None if deleted else StoredState(1, data if data is not None else f"{id}@{seq}".encode())
    return EntityRow(kind, id, seq, state, seq, deleted, time_ms=1000 + seq)


def without_snapshot(id: str, seq: int, kind: str = KIND) -> EntityRow:
    """A row of an event-sourced entity that has new events and no new snapshot."""
    return EntityRow(kind, id, seq, None, 0, time_ms=1000 + seq)


def commit(position: int, id: str, seq: int, data: bytes = b"", *, kind: str = KIND) -> Commit:
    event = StoredEvent("Deposited", 1, data or f"{id}#{seq}".encode())
    return Commit(position, kind, id, seq, 1000 + position, (event,))


def reply(text: str) -> RecordedReply:
    return RecordedReply(0, text.encode(), hash_of(text))


def hash_of(text: str) -> int:
    return sum(text.encode()) * 2_654_435_761 % 2**64


def client(client: int, floor: int, *numbers: int) -> ClientRow:
    return ClientRow(client, floor, tuple((number, reply(f"{client}/{number}")) for number in numbers))


def named(id: str, command_id: str, time_ms: int = 1000, text: str = "done") -> NamedReply:
    return NamedReply(KIND, id, command_id, reply(text), time_ms)


def accepted(text: str) -> Accepted:
    return Accepted("deposit", text.encode(), client=7, number=hash_of(text) % 1000, command_id=text)


def mail(id: str, entry: int, arguments: bytes | None = None, attempts: int = 0) -> MailboxRow:
    """A mailbox entry that says whose it is and which."""
    made = accepted(f"{id}/{entry}")
    if arguments is not None:
        made = replace(made, arguments=arguments)
    return MailboxRow(KIND, id, entry, made, attempts, 1000 + entry)


def message(number: int, id: str = "bob") -> OutboxRow:
    return OutboxRow(number, StoredMessage(KIND, id, "deposit", b"message %d" % number))


def timer(id: str, name: str, due_ms: int, set_at: int = 1) -> TimerRow:
    return TimerRow(KIND, id, StoredTimer(name, due_ms, "tick", f"{id}/{name}@{due_ms}".encode(), set_at=set_at))


def letter(number: int, id: str = "alice") -> DeadLetterRow:
    dead = DeadLetter("deposit", b"%d" % number, 7, number, "", 5, "failed", f"no luck with {number}", 1000 + number)
    return DeadLetterRow(number, KIND, id, dead)


async def own(store: Store, incarnation: int, *shards: int) -> dict[int, int]:
    """Assign shards to a live host and claim them for it; return their epochs."""
    rows = {row.shard: row for row in await store.shards()}
    wanted = shards or tuple(rows)
    decided = [Assignment(shard, rows[shard].epoch, incarnation) for shard in wanted]
    assert await store.assign(decided) == set(wanted)
    taken = await store.claim(incarnation, [(shard, rows[shard].epoch + 1) for shard in wanted])
    assert [row.shard for row in taken] == list(wanted)
    return {row.shard: row.epoch for row in taken}


async def row_of(store: Store, shard: int) -> ShardRow:
    return (await store.shards())[shard]


def ending(shard: int, epoch: int, position: int, *commits: Commit, release: bool = False) -> TableWrite:
    """The last part of a checkpoint."""
    return TableWrite(shard, epoch, end=CheckpointEnd(position, commits, release))
