"""Pending work through everything that can happen to its shard: commits, checkpoints that stop anywhere and begin again,
releases, deaths in the middle of any of it. The definition is the replay of all records, one at a time.

Hypothesis makes the sequences and prints the shortest one that goes wrong, with the lines that replay it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from luck import Luck
from msgspec.structs import replace
from postgres_databases import PostgresDatabases
from store_rows import KIND, accepted, letter, message, row_of, timer

from atoll.persistence.checkpoint import ShardCheckpoint, plan
from atoll.persistence.memory import MemoryStore
from atoll.persistence.overlay import Overlay
from atoll.persistence.pending import BEFORE_ALL_TIMERS, PendingView, TimerPlace
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.records import (
    DeadLetterRow,
    Delivery,
    MailboxRow,
    OutboxRow,
    Record,
    TimerRow,
    encode_batch,
    outbox_number,
)
from atoll.persistence.recovery import RecoveredShard, take_over
from atoll.persistence.spi import Assignment, Store, TableWrite
from atoll.persistence.sqlite import SQLiteStore

SHARDS = 2
IDS = ("a", "b")
FOR_EVER = 1 << 60


class Truth:
    """What is pending after these records of one shard."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.mailbox: dict[tuple[str, int], MailboxRow] = {}
        self.outbox: dict[int, OutboxRow] = {}
        self.timers: dict[tuple[str, str], TimerRow] = {}
        self.letters: dict[int, DeadLetterRow] = {}
        for record in records:
            self._lay(record)

    def _lay(self, record: Record) -> None:
        id, position, delivery = record.id, record.position, record.delivery
        if record.deleted:
            self.timers = {place: row for place, row in self.timers.items() if place[0] != id}
        if delivery is None:
            return
        if delivery.accepted is not None:
            self.mailbox[id, position] = MailboxRow(KIND, id, position, delivery.accepted, 0, record.time_ms)
        for entry, attempts in delivery.attempts:
            self.mailbox[id, entry] = replace(self.mailbox[id, entry], attempts=attempts)
        if delivery.done:
            del self.mailbox[id, delivery.done]
        for index, sent in enumerate(delivery.outbox):
            self.outbox[outbox_number(position, index)] = OutboxRow(outbox_number(position, index), sent)
        for number in delivery.delivered:
            del self.outbox[number]
        for name in delivery.timers_gone:
            self.timers.pop((id, name), None)
        for one in delivery.timers:
            self.timers[id, one.name] = TimerRow(KIND, id, one)
        if delivery.dead is not None:
            self.letters[position] = DeadLetterRow(position, KIND, id, delivery.dead)
        if delivery.letter_gone:
            del self.letters[delivery.letter_gone]

    def entries(self, id: str) -> list[MailboxRow]:
        return [row for (owner, _entry), row in sorted(self.mailbox.items()) if owner == id]

    def due(self) -> list[TimerRow]:
        return sorted(self.timers.values(), key=place_of)


def place_of(row: TimerRow) -> TimerPlace:
    return row.timer.due_ms, row.kind, row.id, row.timer.name


class Part:
    """A shard in its owner's memory."""

    def __init__(self, recovered: RecoveredShard) -> None:
        self.epoch = recovered.row.epoch
        self.position = recovered.position
        self.overlay: Overlay = recovered.overlay


class Host:
    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.n = 0
        self.parts: dict[int, Part] = {}
        self.late: list[TableWrite] = []
        """What its last checkpoint had not written when it stopped."""


class Look:
    """A page of a mailbox or of the timers, from the view that is made first to the answer that comes last."""

    def __init__(self, shard: int, part: Part, what: str, after: int, limit: int) -> None:
        self.shard, self.part = shard, part
        self._what, self._limit = what, limit
        self._place: Any = (after, "", "", "") if what == "timers" else after
        self._view = PendingView(part.overlay)
        self._rows: list[Any] | None = None

    async def read(self, store: Store) -> None:
        if self._what == "timers":
            self._rows = await store.read_timers(self.shard, self._place, 7, self._limit)
        else:
            self._rows = await store.read_mailbox(self.shard, KIND, self._what, self._place, self._limit)

    async def check(self, store: Store, truth: Truth) -> None:
        """The page is what is true now: the first that are pending behind its beginning, none left out."""
        if self._rows is None:
            await self.read(store)
        assert self._rows is not None
        if self._what == "timers":
            page, end = self._view.timers(self._rows, self._place, 7, self._limit)
            places = {
                place_of(row): row for row in truth.due() if self._place < place_of(row) and row.timer.due_ms <= 7
            }
        else:
            page, end = self._view.mailbox((KIND, self._what), self._rows, self._place, self._limit)
            places = {row.entry: row for row in truth.entries(self._what) if self._place < row.entry}
        assert page == [row for place, row in places.items() if end is None or place <= end]
        assert len(page) <= self._limit
        assert end is None or end > self._place, "who pages comes to an end"


class World:
    """Two hosts on one store, and what became durable."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hosts: list[Host] = []
        self.records: dict[int, list[Record]] = {shard: [] for shard in range(SHARDS)}
        self.looks: list[Look] = []

    async def begin(self) -> None:
        await self.store.open("work", SHARDS)
        for _ in range(2):
            self.hosts.append(Host(await self.store.register_host("a:1", "n", None)))
        for shard in range(SHARDS):
            await self._give(self.hosts[0], shard)

    async def _give(self, host: Host, shard: int) -> None:
        epoch = (await row_of(self.store, shard)).epoch
        assert await self.store.assign([Assignment(shard, epoch, host.incarnation)])
        (recovered,) = await take_over(self.store, host.incarnation, [(shard, epoch + 1)])
        host.parts[shard] = Part(recovered)

    def owner(self, shard: int) -> Host:
        return next(host for host in self.hosts if shard in host.parts)

    async def commit(self, host: Host, changes: Iterable[tuple[int, str, str, int]], *, laid: bool = True) -> None:
        """One log row. With `laid` False its host dies before it hears that the row is durable."""
        batch = []
        for shard, what, id, n in changes:
            part = host.parts.get(shard)
            record = None if part is None else made(self.records[shard], shard, what, id, n)
            if part is None or record is None:
                continue
            batch.append(record)
            self.records[shard].append(record)
            part.position += 1
            if laid:
                part.overlay.lay(record)
        if batch:
            host.n += 1
            await self.store.append(host.incarnation, host.n, encode_batch(batch, host.incarnation, host.n))

    async def checkpoint(self, host: Host, rows_max: int, stop: int) -> None:
        """Begin one, or begin again the one that stopped, and write so many of its transactions."""
        parts = [self._part(shard, part) for shard, part in host.parts.items()]
        transactions = list(plan(parts, rows_max, 1 << 30))
        for transaction in transactions[:stop]:
            assert await self.store.checkpoint(host.incarnation, transaction) == frozenset()
        host.late = [write for transaction in transactions[stop:] for write in transaction]
        if not host.late:
            for part in host.parts.values():
                part.overlay.written()

    def _part(self, shard: int, part: Part, *, release: bool = False) -> ShardCheckpoint:
        dirty = part.overlay.freeze(part.position)
        return ShardCheckpoint(shard, part.epoch, part.overlay.frozen_position, dirty, (), release=release)

    async def release(self, shard: int) -> None:
        """Give a shard to the other host."""
        host = self.owner(shard)
        await self.checkpoint(host, 100, 100)
        (transaction,) = plan([self._part(shard, host.parts[shard], release=True)], 1000, 1 << 30)
        assert await self.store.checkpoint(host.incarnation, transaction) == frozenset()
        del host.parts[shard]
        await self._give(self.hosts[1 - self.hosts.index(host)], shard)

    async def fail_over(self, shard: int) -> None:
        """The shard's owner is lost with all that it had. What it was about to write comes late."""
        dead = self.owner(shard)
        other = self.hosts[1 - self.hosts.index(dead)]
        assert await self.store.condemn(dead.incarnation, 0)
        self.hosts[self.hosts.index(dead)] = Host(await self.store.register_host("a:1", "n", None))
        for lost in dead.parts:
            await self._give(other, lost)
        for write in dead.late:
            assert await self.store.checkpoint(dead.incarnation, [write]) == {write.shard}

    async def step(self, name: str, *args: Any) -> None:
        match name, args:
            case "commit", (changes,):
                for host in self.hosts:
                    await self.commit(host, changes)
            case "checkpoint", (rows_max, stop):
                for host in self.hosts:
                    await self.checkpoint(host, rows_max, stop)
            case "release", (shard,):
                await self.release(shard)
            case "fail_over", (shard, last_words):
                await self.commit(self.owner(shard), last_words, laid=False)
                await self.fail_over(shard)
            case "look", (shard, what, after, limit):
                self.looks.append(Look(shard, self.owner(shard).parts[shard], what, after, limit))
            case "read", ():
                for look in self.looks:
                    await look.read(self.store)
            case "see", ():
                looks, self.looks = self.looks, []
                for look in looks:
                    if look.part in self.owner(look.shard).parts.values():  # else nobody is there to be answered
                        await look.check(self.store, Truth(self.records[look.shard]))

    async def check(self) -> None:
        """Overlay over tables is the replay, for every shard; read page by page."""
        for shard in range(SHARDS):
            overlay, truth = self.owner(shard).parts[shard].overlay, Truth(self.records[shard])
            view = PendingView(overlay)
            (work,) = await self.store.read_pending([shard])
            assert view.outbox(work.outbox) == [row for _number, row in sorted(truth.outbox.items())]
            with_mail = {(KIND, id) for id in IDS if truth.entries(id)}
            assert view.mailboxes() <= with_mail <= view.mailboxes() | {(box.kind, box.id) for box in work.mailboxes}
            for limit in (1, 3, 100):
                for id in IDS:
                    assert await self._mailbox(shard, id, limit) == truth.entries(id)
                assert await self._timers(shard, limit) == truth.due()
            for number in range(1, len(self.records[shard]) + 1):
                rows = await self.store.read_dead_letters(shard, number - 1, 1)
                assert view.dead_letter(number, rows) == truth.letters.get(number)

    async def _mailbox(self, shard: int, id: str, limit: int) -> list[MailboxRow]:
        view, found, after = PendingView(self.owner(shard).parts[shard].overlay), [], 0
        while True:
            rows = await self.store.read_mailbox(shard, KIND, id, after, limit)
            page, end = view.mailbox((KIND, id), rows, after, limit)
            found += page
            if end is None:
                return found
            after = end

    async def _timers(self, shard: int, limit: int) -> list[TimerRow]:
        view, found, after = PendingView(self.owner(shard).parts[shard].overlay), [], BEFORE_ALL_TIMERS
        while True:
            rows = await self.store.read_timers(shard, after, FOR_EVER, limit)
            page, end = view.timers(rows, after, FOR_EVER, limit)
            found += page
            if end is None:
                return found
            after = end

    async def check_tables(self) -> None:
        """After a last whole checkpoint the tables alone are the replay, with nothing left over."""
        for host in self.hosts:
            await self.checkpoint(host, 100, 1000)  # what had stopped half way
            await self.checkpoint(host, 100, 1000)
        for shard in range(SHARDS):
            truth = Truth(self.records[shard])
            (work,) = await self.store.read_pending([shard])
            assert list(work.outbox) == [row for _number, row in sorted(truth.outbox.items())]
            assert [box.id for box in work.mailboxes] == [id for id in IDS if truth.entries(id)]
            for id in IDS:
                assert await self.store.read_mailbox(shard, KIND, id) == truth.entries(id)
            assert await self.store.read_timers(shard, BEFORE_ALL_TIMERS, FOR_EVER, 100) == truth.due()
            assert await self.store.read_dead_letters(shard) == [row for _n, row in sorted(truth.letters.items())]


def made(before: list[Record], shard: int, what: str, id: str, n: int) -> Record | None:
    """The next record of a shard, or None when there is nothing that such a one could be about."""
    truth, position = Truth(before), len(before) + 1
    record = Record(shard, position, KIND, id, time_ms=1000 + position)
    entries, letters = truth.entries(id), sorted(number for number, row in truth.letters.items() if row.id == id)
    entry = entries[n % len(entries)] if entries else None
    match what:
        case "accept":
            record.delivery = Delivery(accepted=accepted(f"{shard}/{position}"))
        case "done" if entry:
            record.delivery = Delivery(done=entry.entry)
        case "try" if entry:
            record.delivery = Delivery(attempts=((entry.entry, entry.attempts + 1),))
        case "bury" if entry:
            record.delivery = Delivery(done=entry.entry, dead=letter(position, id).letter)
        case "replay" if letters:
            record.delivery = Delivery(accepted=accepted("again"), letter_gone=letters[n % len(letters)])
        case "drop" if letters:
            record.delivery = Delivery(letter_gone=letters[n % len(letters)])
        case "send":
            record.delivery = Delivery(outbox=tuple(message(index).message for index in range(n % 3 + 1)))
        case "deliver" if truth.outbox:
            numbers = sorted(truth.outbox)
            record.delivery = Delivery(delivered=tuple(numbers[n % len(numbers) :][:2]))
        case "schedule":
            record.delivery = Delivery(timers=(timer(id, "xyz"[n % 3], n, position).timer,))
        case "cancel":
            record.delivery = Delivery(timers_gone=("xyz"[n % 3],))
        case "delete":
            record.seq, record.deleted = position, True
        case "start anew":
            record.seq, record.deleted = position, True
            record.delivery = Delivery(timers=(timer(id, "xyz"[n % 3], n, position).timer,), timers_gone=("x",))
        case "do all" if entry:
            record.delivery = Delivery(
                accepted=accepted("next"),
                done=entry.entry,
                attempts=tuple((one.entry, 7) for one in entries if one is not entry),
                outbox=(message(0).message,),
                timers=(timer(id, "x", n, position).timer,),
                timers_gone=("y",),
            )
        case _:
            return None
    return record


WHATS = (
    ["accept"] * 4
    + ["done"] * 3
    + ["send"] * 2
    + ["deliver"] * 2
    + ["schedule"] * 3
    + ["cancel"] * 2
    + ["try", "bury", "replay", "drop", "delete", "start anew", "do all"]
)
STOPS = [0, 1, 2, 3, 1000, 1000]
shards = st.integers(0, SHARDS - 1)
changes = st.lists(st.tuples(shards, st.sampled_from(WHATS), st.sampled_from(IDS), st.integers(0, 9)), max_size=5)
steps = st.one_of(
    st.tuples(st.just("commit"), changes),
    st.tuples(st.just("commit"), changes),
    st.tuples(st.just("checkpoint"), st.integers(1, 4), st.sampled_from(STOPS)),
    st.tuples(st.just("release"), shards),
    st.tuples(st.just("fail_over"), shards, changes),
    st.tuples(st.just("look"), shards, st.sampled_from([*IDS, "timers"]), st.integers(0, 5), st.integers(1, 3)),
    st.tuples(st.just("read")),
    st.tuples(st.just("see")),
)
sequences = st.lists(steps, min_size=4, max_size=30)


def lucky_steps(luck: random.Random, count: int) -> Iterator[tuple[Any, ...]]:
    """Longer stories than Hypothesis tells: what one death leaves behind shows after the next."""

    def lucky_changes() -> list[tuple[int, str, str, int]]:
        return [
            (luck.randrange(SHARDS), luck.choice(WHATS), luck.choice(IDS), luck.randrange(10))
            for _ in range(luck.randrange(6))
        ]

    names = ["commit"] * 8 + ["checkpoint"] * 6 + ["look"] * 3 + ["fail_over", "see"] * 2 + ["release", "read"]
    for _ in range(count):
        shard, name = luck.randrange(SHARDS), luck.choice(names)
        match name:
            case "commit":
                yield name, lucky_changes()
            case "checkpoint":
                yield name, luck.randrange(1, 5), luck.choice(STOPS)
            case "release":
                yield name, shard
            case "fail_over":
                yield name, shard, lucky_changes()
            case "look":
                yield name, shard, luck.choice([*IDS, "timers"]), luck.randrange(6), luck.randrange(1, 4)
            case _:
                yield (name,)


async def play(store: Store, sequence: Iterable[tuple[Any, ...]]) -> None:
    world = World(store)
    await world.begin()
    for name, *args in sequence:
        await world.step(name, *args)
        await world.check()
    await world.step("see")
    await world.check_tables()


async def play_and_close(store: Store, sequence: Iterable[tuple[Any, ...]]) -> None:
    try:
        await play(store, sequence)
    finally:
        await store.close()


def play_on_sqlite(sequence: Iterable[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play_and_close(SQLiteStore(Path(folder) / "store"), sequence))


def play_on_postgresql(databases: PostgresDatabases, sequence: Iterable[tuple[Any, ...]]) -> None:
    with databases.fresh() as name:
        asyncio.run(play_and_close(PostgresStore(databases.server.url(name)), sequence))


@settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(sequences)
def test_pending_work_is_the_replay_of_all_records(sequence: list[tuple[Any, ...]]) -> None:
    """J04, J05, J15, PR06, PR08: at every instant overlay over tables, whoever owns the shard, after checkpoints and deaths
    at any point; in the end the tables alone, with no row left over."""
    asyncio.run(play(MemoryStore(), sequence))


@settings(max_examples=12, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(sequences)
def test_pending_work_is_the_replay_of_all_records_on_sqlite(sequence: list[tuple[Any, ...]]) -> None:
    """J04, J05, J15: the same over files."""
    play_on_sqlite(sequence)


@settings(
    max_examples=6,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(sequence=sequences)
def test_pending_work_is_the_replay_of_all_records_on_postgresql(
    postgres_databases: PostgresDatabases, sequence: list[tuple[Any, ...]]
) -> None:
    """J04, J05, J15: the same over a database."""
    play_on_postgresql(postgres_databases, sequence)


@pytest.mark.parametrize("seed", range(12))
def test_pending_work_is_the_replay_after_many_deaths(seed: int) -> None:
    """J04, J05, J15, J16, PR06, PR08: long stories, in which a successor dies in the middle of what its predecessor left."""
    asyncio.run(play(MemoryStore(), lucky_steps(random.Random(seed), 150)))


def test_pending_work_is_the_replay_after_many_deaths_on_sqlite() -> None:
    """J04, J05, J15, J16: the same over files, with another story each time."""
    play_on_sqlite(lucky_steps(Luck(), 100))


def test_pending_work_is_the_replay_after_many_deaths_on_postgresql(postgres_databases: PostgresDatabases) -> None:
    """J04, J05, J15, J16: the same over a database."""
    play_on_postgresql(postgres_databases, lucky_steps(Luck(), 60))
