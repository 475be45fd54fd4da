"""The memory store says what the promises mean; the others must say the same, whatever is asked of it in whatever order.

Hypothesis makes sequences of calls and prints the shortest one that differs, with the lines that replay it. The values
in a call are small and relative to what the store holds, so that most calls are nearly right: they meet.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_databases import PostgresDatabases
from store_rows import KIND, client, commit, ending, entity, letter, mail, message, named, timer, without_snapshot

from atoll.actors.errors import AtollError
from atoll.actors.stored import StoredState
from atoll.persistence.memory import MemoryStore
from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.records import EntityRow
from atoll.persistence.spi import Assignment, CheckpointEnd, Store, TableWrite
from atoll.persistence.sqlite import SQLiteStore
from atoll.persistence.tables import Table

SHARDS = 2
hosts = st.integers(1, 4)
shards = st.integers(0, SHARDS - 1)
off_by = st.sampled_from([0, 0, 0, 0, -1, 1])
"""Mostly right, sometimes stale, sometimes from nowhere."""
ids = st.sampled_from(["a", "b", "ü\x00"])
seqs = st.integers(1, 8)
contents = st.sampled_from([b"", b"x", b"y"])

entities = st.one_of(
    st.builds(entity, ids, seqs),
    st.builds(lambda name, seq: entity(name, seq, deleted=True), ids, seqs),
    st.builds(without_snapshot, ids, seqs),
    st.builds(lambda name, seq: EntityRow(KIND, name, seq, StoredState(1, b"snapshot"), seq // 2), ids, seqs),
)
clients = st.builds(lambda number, floor: client(number, floor, floor, floor + 2), st.integers(1, 3), st.integers(1, 5))
replies = st.builds(named, ids, ids, st.integers(1, 5), ids)


def unique(rows: st.SearchStrategy[Any], key: Callable[[Any], Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(rows, max_size=3, unique_by=key).map(tuple)


numbers = st.integers(1, 5)
names = st.sampled_from(["x", "y"])
keys = st.tuples(st.just(KIND), ids)
pending = st.fixed_dictionaries(
    {},
    optional={
        "mailbox": unique(st.builds(mail, ids, numbers, contents, st.integers(0, 2)), lambda row: (row.id, row.entry)),
        "mailbox_done": unique(st.tuples(st.just(KIND), ids, numbers), lambda place: place),
        "mailbox_attempts": unique(st.tuples(st.just(KIND), ids, numbers, numbers), lambda row: row[:3]),
        "outbox": unique(st.builds(message, numbers, ids), lambda row: row.number),
        "outbox_done": unique(numbers, lambda number: number),
        "timers": unique(st.builds(timer, ids, names, numbers), lambda row: (row.id, row.timer.name)),
        "timers_gone": unique(st.tuples(st.just(KIND), ids, names), lambda place: place),
        "timers_cleared": unique(keys, lambda key: key),
        "dead_letters": unique(st.builds(letter, numbers, ids), lambda row: row.number),
        "letters_gone": unique(numbers, lambda number: number),
        "named_gone": unique(st.tuples(st.just(KIND), ids, ids), lambda name: name),
    },
)
ends = st.tuples(st.integers(0, 6), st.lists(ids, max_size=4), st.sampled_from([False, False, False, True]))
writes = st.tuples(
    shards,
    off_by,
    unique(entities, lambda row: (row.kind, row.id)),
    unique(clients, lambda row: row.client),
    st.lists(st.integers(1, 3), max_size=1).map(tuple),
    unique(replies, lambda row: (row.id, row.command_id)),
    st.integers(0, 3),
    st.none() | ends,
    st.just({}) | pending,
)
calls = st.one_of(
    st.tuples(st.just("register"), st.sampled_from(["", "2"]), st.sampled_from([1.0, 2.5, 0.0])),
    st.tuples(st.just("own"), hosts, shards),
    st.tuples(st.just("own"), hosts, shards),
    st.tuples(st.just("renew"), hosts),
    st.tuples(st.just("condemn"), hosts, off_by),
    st.tuples(st.just("set_draining"), hosts, st.booleans()),
    st.tuples(st.just("assign"), st.lists(st.tuples(shards, off_by, hosts), max_size=3)),
    st.tuples(st.just("move"), st.lists(st.tuples(shards, off_by, hosts), max_size=3)),
    st.tuples(st.just("pin"), shards, st.sampled_from(["node-1", "", None])),
    st.tuples(st.just("release"), shards),
    st.tuples(st.just("hand over"), hosts, shards, hosts, st.sampled_from(["", "drains", "ends"])),
    st.tuples(st.just("claim"), hosts, st.lists(st.tuples(shards, off_by), max_size=3)),
    st.tuples(st.just("append"), hosts, st.sampled_from([1, 1, 1, 1, 0, -1, 2]), contents),
    st.tuples(st.just("append"), hosts, st.just(1), contents),
    st.tuples(st.just("seal"), hosts),
    st.tuples(st.just("delete_log_rows"), hosts, st.integers(0, 6)),
    st.tuples(st.just("checkpoint"), hosts, st.lists(writes, min_size=1, max_size=3)),
    st.tuples(st.just("checkpoint"), hosts, st.lists(writes, min_size=1, max_size=3)),
    st.tuples(st.just("delete_history"), shards, st.just(KIND), ids, seqs),
    st.tuples(st.just("open_session")),
    st.tuples(st.just("touch_sessions"), st.lists(st.integers(1, 4), max_size=3)),
    st.tuples(st.just("expire_sessions"), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=3)),
    st.tuples(st.just("reopen")),
)


class Pair:
    """The memory store and another one that get the same calls."""

    def __init__(self, make: Callable[[], Store]) -> None:
        """`make`: another handle on the same store."""
        self.memory = MemoryStore()
        self._make = make
        self.other = make()
        self._newest: dict[int, int] = {}
        self._events: dict[str, int] = {}

    async def open(self) -> None:
        await self.memory.open("bank", SHARDS)
        await self.other.open("bank", SHARDS)

    async def close(self) -> None:
        await self.other.close()

    async def both(self, ask: Callable[[Store], Awaitable[Any]]) -> None:
        expected, found = [await outcome(ask(store)) for store in (self.memory, self.other)]
        assert found == expected

    async def call(self, name: str, *args: Any) -> None:
        match name, args:
            case "register", (version, weight):
                await self.both(lambda store: store.register_host("a:1", "node", None, version=version, weight=weight))
            case "own", (host, shard):
                epoch = await self._epoch(shard)
                await self.both(lambda store: store.assign([Assignment(shard, epoch, host)]))
                await self.both(lambda store: store.claim(host, [(shard, epoch + 1)]))
            case "condemn", (host, off):
                known = {row.incarnation: row.renewals for row in await self.memory.hosts()}
                await self.both(lambda store: store.condemn(host, known.get(host, 0) + off))
            case "assign", (wanted,):
                decided = [Assignment(shard, await self._epoch(shard) + off, host) for shard, off, host in wanted]
                await self.both(lambda store: store.assign(decided))
            case "move", (wanted,):
                decided = [Assignment(shard, await self._epoch(shard) + off, host) for shard, off, host in wanted]
                await self.both(lambda store: store.move(decided))
            case "hand over", (source, shard, target, meanwhile):
                await self.call("own", source, shard)
                await self.call("move", [(shard, 0, target)])
                if meanwhile == "drains":
                    await self.call("set_draining", target, True)
                elif meanwhile == "ends":
                    await self.call("condemn", target, 0)
                await self.call("release", shard)
            case "release", (shard,):
                row = (await self.memory.shards())[shard]
                release = ending(shard, row.epoch, row.position, release=True)
                await self.both(lambda store: store.checkpoint(row.owner or 1, [release]))
            case "claim", (host, wanted):
                claims = [(shard, await self._epoch(shard) + off) for shard, off in wanted]
                await self.both(lambda store: store.claim(host, claims))
            case "append", (host, step, content):
                n = max(1, self._newest.get(host, 0) + step)
                if not isinstance(await outcome(self.other.read_log(host)), type) and step == 1:
                    self._newest[host] = n
                await self.both(lambda store: store.append(host, n, content))
            case "checkpoint", (host, parts):
                made = [await self._write(*part) for part in parts]
                await self.both(lambda store: store.checkpoint(host, made))
            case "reopen", ():
                await self.other.close()
                self.other = self._make()
                await self.other.open("bank", SHARDS)
            case _:
                await self.both(lambda store: getattr(store, name)(*args))

    async def _epoch(self, shard: int) -> int:
        return (await self.memory.shards())[shard].epoch

    async def _write(self, shard: int, off: int, *parts: Any) -> TableWrite:
        *rows, end, pending = parts
        row = (await self.memory.shards())[shard]
        made = None
        if end is not None:
            ahead, events, release = end
            commits = []
            for position, id in enumerate(events, row.position):  # the first one is in the history already
                self._events[id] = self._events.get(id, 0) + 1
                commits.append(commit(position, id, self._events[id]))
            commits = [c for c in commits if 0 < c.position <= row.position + ahead]
            made = CheckpointEnd(row.position + ahead, tuple(commits), release)
        return TableWrite(shard, row.epoch + off, *rows, end=made, **pending)

    async def compare_everything(self) -> None:
        await self.both(lambda store: store.hosts())
        await self.both(lambda store: store.shards())
        await self.both(lambda store: store.sessions())
        for host in range(1, 5):
            await self.both(lambda store, host=host: store.read_log(host))
            await self.both(lambda store, host=host: store.read_log(host, 2))
        await self.both(lambda store: store.read_pending([1, 0]))
        await self.both(lambda store: store.numbers())
        for shard in range(SHARDS):
            await self.both(lambda store, shard=shard: store.check(shard))
            for table in Table:
                await self.both(lambda store, s=shard, t=table: store.scan(t, s, None, 99))
            await self.both(lambda store, shard=shard: store.read_clients(shard))
            for after, limit in itertools.product((0, 3), (None, 0, 2)):
                await self.both(lambda store, s=shard, a=after, x=limit: store.read_dead_letters(s, a, x))
            for place, limit in itertools.product((BEFORE_ALL_TIMERS, (3, KIND, "b", "x")), (2, 99)):
                await self.both(lambda store, s=shard, a=place, x=limit: store.read_timers(s, a, 4, x))
            for after, limit in itertools.product((0, 3), (None, 0, 2)):
                await self.both(lambda store, s=shard, a=after, x=limit: store.read_history(s, a, x))
            for id in ("a", "b", "ü\x00", "c"):
                await self.both(lambda store, s=shard, i=id: store.read_entity(s, KIND, i))
                await self.both(lambda store, s=shard, i=id: store.read_mailbox(s, KIND, i))
                await self.both(lambda store, s=shard, i=id: store.read_mailbox(s, KIND, i, 2, 1))
                for after, to, limit in itertools.product((0, 2), (None, 3), (None, 1)):
                    await self.both(
                        lambda store, s=shard, i=id, a=after, t=to, x=limit: store.read_commits(s, KIND, i, a, t, x)
                    )
                for command in ("a", "b", "ü\x00"):
                    await self.both(lambda store, s=shard, i=id, c=command: store.read_named(s, KIND, i, c))


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call returned, or the type of what it raised."""
    try:
        return await call
    except (AtollError, ValueError) as error:
        return type(error)


async def run(sequence: list[tuple[Any, ...]], make: Callable[[], Store]) -> None:
    pair = Pair(make)
    await pair.open()
    try:
        for _ in range(2):
            await pair.call("register", "", 1.0)
        for name, *args in sequence:
            await pair.call(name, *args)
        await pair.compare_everything()
        await pair.call("reopen")
        await pair.compare_everything()
    finally:
        await pair.close()


SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
sequences = given(sequence=st.lists(calls, min_size=5, max_size=40))


def on_sqlite(sequence: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(sequence, lambda: SQLiteStore(Path(folder) / "store")))


@settings(max_examples=40, deadline=None, print_blob=True, suppress_health_check=SLOW)
@sequences
def test_sqlite_answers_every_sequence_of_calls_as_memory_does(sequence: list[tuple[Any, ...]]) -> None:
    """J03, J04, J06, J07, J10, J15, J16, PR01-PR04, PR07, PR12, PR14, S13: the two stores give equal results, call by call, and hold the
    same in the end, also after a reopen."""
    on_sqlite(sequence)


@pytest.mark.soak
@pytest.mark.timeout(600)
@settings(max_examples=1000, deadline=None, print_blob=True, suppress_health_check=SLOW)
@sequences
def test_sqlite_answers_a_thousand_sequences_of_calls_as_memory_does(sequence: list[tuple[Any, ...]]) -> None:
    """J03, J04, J06, J07, J10, J15, J16, PR01-PR04, PR07, PR12, PR14, S13: the same for longer."""
    on_sqlite(sequence)


@settings(max_examples=20, deadline=None, print_blob=True, suppress_health_check=SLOW)
@sequences
def test_postgresql_answers_every_sequence_of_calls_as_memory_does(
    postgres_databases: PostgresDatabases, sequence: list[tuple[Any, ...]]
) -> None:
    """J03, J04, J06, J07, J10, J15, J16, PR01-PR04, PR07, PR12, PR14, S13: the same on PostgreSQL."""
    with postgres_databases.fresh() as name:
        asyncio.run(run(sequence, lambda: PostgresStore(postgres_databases.server.url(name))))
