"""Everything that a store holds, as one value that can be compared and kept as JSON."""

from __future__ import annotations

import msgspec

from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.records import (
    ClientRow,
    Commit,
    DeadLetterRow,
    EntityRow,
    MailboxRow,
    NamedReply,
    OutboxRow,
    Record,
    TimerRow,
    decode_batch,
)
from atoll.persistence.spi import HostRow, ShardRow, Store


class Dump(msgspec.Struct):
    hosts: list[HostRow]
    shards: list[ShardRow]
    sessions: dict[int, int]
    logs: dict[int, dict[int, list[Record]]]
    """incarnation -> n -> records"""
    seals: dict[int, int]
    """incarnation -> n of its seal, of the sealed ones"""
    entities: list[list[EntityRow | None]]
    """per shard, in the order of the IDs that were asked for"""
    clients: list[list[ClientRow]]
    named: list[list[NamedReply | None]]
    history: list[list[Commit]]
    history_by_entity: list[list[list[Commit]]]
    mailbox: dict[int, list[MailboxRow]] = {}
    """Of the shards that have some; so are the following. Since schema 2."""
    outbox: dict[int, tuple[OutboxRow, ...]] = {}
    timers: dict[int, list[TimerRow]] = {}
    dead_letters: dict[int, list[DeadLetterRow]] = {}


async def dump(
    store: Store, *, logs: list[int], sealed: list[int], keys: list[tuple[str, str]], app_command: str
) -> Dump:
    """Read it all. `keys` are the (kind, ID) of the entities, `app_command` the command ID to ask each for."""
    shards = await store.shards()
    numbers = [row.shard for row in shards]
    mailbox = {shard: [row for key in keys for row in await store.read_mailbox(shard, *key)] for shard in numbers}
    timers = {shard: await store.read_timers(shard, BEFORE_ALL_TIMERS, 2**62, 1000) for shard in numbers}
    dead_letters = {shard: await store.read_dead_letters(shard) for shard in numbers}
    return Dump(
        hosts=await store.hosts(),
        shards=shards,
        sessions=await store.sessions(),
        logs={log: {row.n: decode_batch(row.content, log, row.n) for row in await store.read_log(log)} for log in logs},
        seals={log: await store.seal(log) for log in sealed},
        entities=[[await store.read_entity(shard, *key) for key in keys] for shard in numbers],
        clients=[await store.read_clients(shard) for shard in numbers],
        named=[[await store.read_named(shard, *key, app_command) for key in keys] for shard in numbers],
        history=[await store.read_history(shard) for shard in numbers],
        history_by_entity=[[await store.read_commits(shard, *key) for key in keys] for shard in numbers],
        mailbox={shard: rows for shard, rows in mailbox.items() if rows},
        outbox={work.shard: work.outbox for work in await store.read_pending(numbers) if work.outbox},
        timers={shard: rows for shard, rows in timers.items() if rows},
        dead_letters={shard: rows for shard, rows in dead_letters.items() if rows},
    )
