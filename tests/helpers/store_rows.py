"""Rows for tests of stores: short to write, and each different from its neighbours."""

from __future__ import annotations

from atoll.actors.stored import StoredEvent, StoredState
from atoll.persistence.records import ClientRow, Commit, EntityRow, NamedReply, Record, RecordedReply, encode_batch
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
