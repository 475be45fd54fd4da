"""Export and import: an app that goes on in another store exactly where it was, and files that are not believed."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from bank_of_messages import Clock, Load, Notebook
from store_rows import client, commit, entity, letter, mail, message, named, own, timer
from upkeep_app import APP, SETTINGS, silent, two_hosts

from atoll.actors.errors import IncompatibleStore
from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster
from atoll.cluster.store_export import export_store, new_file
from atoll.cluster.store_import import import_store
from atoll.cluster.store_walk import pages
from atoll.cluster.system import SystemWorld
from atoll.persistence.export_format import DamagedExport, ExportWriter, Head, ShardEnd
from atoll.persistence.memory import MemoryStore
from atoll.persistence.open import open_store
from atoll.persistence.records import Record, encode_batch
from atoll.persistence.spi import CheckpointEnd, Numbers, ShardState, Store, TableWrite
from atoll.persistence.tables import Table, TableRow
from atoll.sharding.charge import NOBODY, StoreInUse, in_charge
from atoll.sharding.hashing import shard_of

PLAIN = Settings(shards=4, lease_s=0.2)


async def exported(store: Store, app: str, settings: Settings) -> bytes:
    file = io.BytesIO()
    await export_store(store, file, app=app, settings=settings, world=SystemWorld(), software="a test", tell=silent)
    return file.getvalue()


async def imported(store: Store, content: bytes, app: str = "bank", settings: Settings = PLAIN) -> int:
    return await import_store(store, io.BytesIO(content), app=app, settings=settings, tell=silent)


async def holds(store: Store) -> Any:
    """All that an app finds in a store."""
    shards = await store.shards()
    tables = {
        (table, row.shard): [some async for page in pages(store, table, row.shard) for some in page]
        for table in Table
        for row in shards
    }
    return tables, [row.position for row in shards], await store.sessions()


# ---- an app that goes on


async def test_an_app_goes_on_in_another_store_where_it_was_killed(tmp_path: Path, second_store: str) -> None:
    """J05, M02, M05, M06, M07, M10, S15: hosts are killed with money reserved, messages on their way, tells accepted
    and timers set; what was exported from there ends in the other store as if nothing had happened, and a command ID is
    known there."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - what replays it
    async with (
        two_hosts(tmp_path / "first") as first,
        first.connect() as client,
    ):
        load = Load(client, "a", random.Random(seed))
        await load.open()
        await client.entity(Notebook, "once").note.using(command_id="order-1")("a")
        await load_for(load, 1.0)
        held = client.entity(Notebook, "held")
        await client.entity(Clock, "later").arm("alarm", "rings", 1500)
        await asyncio.gather(held.note_slowly.tell("first", 1.0), held.note.tell("second"))
        for host in first.hosts:
            host.kill()
        await asyncio.gather(*(host.process.wait() for host in first.hosts))
    settings = msgspec.convert(SETTINGS, Settings)
    source = open_store(first.store_url)
    await source.open(APP, settings.shards)
    content = await exported(source, APP, settings)
    before, numbers = await holds(source), await source.numbers()
    await source.close()
    for table in (Table.ENTITIES, Table.CLIENTS, Table.NAMED, Table.MAILBOX, Table.TIMERS):
        assert any(rows for (of, _), rows in before[0].items() if of is table), f"no {table}: it proves too little"

    assert await imported(open_store(second_store), content, APP, settings) == sum(map(len, before[0].values()))
    store = open_store(second_store)
    await store.open(APP, settings.shards)
    assert await holds(store) == before
    assert await store.numbers() == numbers
    await store.close()

    async with (
        two_hosts(tmp_path / "second", second_store) as second,
        second.connect() as client,
    ):
        load._cluster = client
        await client.entity(Notebook, "once").note.using(command_id="order-1")("a")
        assert await client.entity(Notebook, "once").audit() == ["a"]
        await load.settle()  # this client is another one, and order is promised to each by itself
        await load_for(load, 0.5)
        await load.settle()
        await load.check()
        async with asyncio.timeout(60):
            held = client.entity(Notebook, "held")
            while await held.audit() != ["first", "second"] or (await rung(client)) != ["rings"]:  # noqa: ASYNC110 - nobody here is told
                await asyncio.sleep(0.02)


async def rung(client: Cluster) -> list[str]:
    return (await client.entity(Clock, "later").audit()).fired


async def load_for(load: Load, seconds: float) -> None:
    async with load.working():
        await asyncio.sleep(seconds)


# ---- what an export holds


async def filled(store: Store) -> None:
    """A store of four shards: something of every table in the tables, and the last of it only in a log."""
    await store.open("bank", 4)
    host = await store.register_host("127.0.0.1:2", "", None)
    epochs = await own(store, host)
    alice, bob = shard_of("alice", 4), shard_of("bob", 4)
    assert alice != bob
    await store.open_session()
    await store.touch_sessions([1])
    await store.checkpoint(
        host,
        [
            TableWrite(
                alice,
                epochs[alice],
                entities=(entity("alice", 3),),
                clients=(client(1, 4, 4, 5),),
                named=(named("alice", "order-1"),),
                mailbox=(mail("alice", 8),),
                outbox=(message(2 << 16),),
                timers=(timer("alice", "close", 9000),),
                dead_letters=(letter(3, "alice"),),
                end=CheckpointEnd(12, (commit(1, "alice", 1), commit(12, "alice", 3))),
            )
        ],
    )
    tail = Record(bob, 1, "Account", "bob", 1, 1000, entity("bob", 1).state, client=1, number=1, floor=1)
    await store.append(host, 1, encode_batch([tail], host, 1))


@pytest.fixture
async def source() -> MemoryStore:
    store = MemoryStore()
    await filled(store)
    return store


async def test_an_export_is_read_without_our_code(source: MemoryStore) -> None:
    """J13: plain MessagePack objects: a head that names the fields, rows shard by shard, ends; what stood only in a log
    is among them."""
    head, *objects = msgpack.Unpacker(io.BytesIO(await exported(source, "bank", PLAIN)))
    assert (head["format"], head["version"], head["app"], head["shards"]) == ("atoll-export", 1, "bank", 4)
    rows = [
        (what, shard, dict(zip(head["fields"][what], row, strict=True)))
        for what, shard, row in (item for item in objects[1:-1] if item[0] != "shard")
    ]
    states = {
        row["id"]: dict(zip(head["fields"]["StoredState"], row["state"], strict=True))["data"]
        for what, _, row in rows
        if what == "entities"
    }
    assert states == {"alice": b"alice@3", "bob": b"bob@1"}
    assert {what for what, _, _ in rows} == {table.value for table in Table}
    assert objects[0] == ["session", 1, 1]
    assert [(shard, position) for what, shard, _, position in (o for o in objects if o[0] == "shard")] == [
        (shard, {shard_of("alice", 4): 12, shard_of("bob", 4): 1}.get(shard, 0)) for shard in range(4)
    ]
    assert objects[-1][0] == "end"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def source_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = {"memory": "memory:", "sqlite": f"sqlite:{tmp_path / 'store'}"}.get(request.param)
    return url or str(request.getfixturevalue("postgres_url"))


async def test_an_export_leaves_the_store_as_a_stop_would(source_url: str) -> None:
    """J05: on each kind of store every shard is free at its last position, nobody is left in charge, and the next
    export says the same."""
    source = open_store(source_url)
    await filled(source)
    first = await exported(source, "bank", PLAIN)
    rows = await source.shards()
    assert {(row.state, row.owners) for row in rows} == {(ShardState.FREE, ())}
    assert await source.hosts() == []
    target, again = MemoryStore(), MemoryStore()
    assert await imported(target, first) == await imported(again, await exported(source, "bank", PLAIN)) == 11
    for store in (target, again):
        await store.open("bank", 4)
    assert await holds(target) == await holds(again) == await holds(source)
    await source.close()


# ---- who is in charge


async def test_a_running_app_is_not_exported(source: MemoryStore) -> None:
    """J13: a host that renews its lease is left alone, and the user is told to stop the app."""
    (host,) = await source.hosts()
    over = asyncio.Event()

    async def renew() -> None:
        while not over.is_set():
            await source.renew(host.incarnation)
            await asyncio.sleep(0.01)

    renewing = asyncio.create_task(renew())
    with pytest.raises(StoreInUse, match="stop it first"):
        await exported(source, "bank", PLAIN)
    over.set()
    await renewing
    assert [row.state for row in await source.shards()] == [ShardState.OWNED] * 4
    assert (await source.hosts())[0].state == "live"


async def test_an_app_that_starts_during_an_export_wins(source: MemoryStore) -> None:
    """J13, S13: it condemns who is in charge and goes on; whatever that one writes or finishes is refused."""
    async with in_charge(source, PLAIN, SystemWorld()) as charge:
        (me,) = [host for host in await source.hosts() if host.address == NOBODY]
        assert await source.condemn(me.incarnation, me.renewals)
        starting = await source.register_host("127.0.0.1:3", "", None)
        epochs = await own(source, starting, 0)
        with pytest.raises(StoreInUse, match="started"):
            await charge.write(0, entities=(entity("x", 1),))
        await charge.write(1, forgotten_clients=(99,))
        with pytest.raises(StoreInUse, match="started"):
            await charge.check()
    rows = await source.shards()
    assert (rows[0].owner, rows[0].epoch) == (starting, epochs[0])
    assert [row.state for row in rows[1:]] == [ShardState.FREE] * 3


# ---- files that are not believed


@pytest.mark.parametrize("seed", range(20))
async def test_a_damaged_file_touches_nothing(source: MemoryStore, seed: int) -> None:
    """J14: cut anywhere, or with any byte changed, it is refused before the target is made."""
    luck = random.Random(seed)
    content = await exported(source, "bank", PLAIN)
    at = luck.randrange(len(content))
    flipped = bytearray(content)
    flipped[at] ^= luck.randrange(1, 256)
    for damaged in (content[:at], bytes(flipped), content + b"\x00", b"", b"text\n" * 100):
        target = MemoryStore()
        with pytest.raises(DamagedExport):
            await imported(target, damaged)
        await target.open("another", 1)  # nobody made it


Change = Callable[[ExportWriter], None]


def made(*changes: Change, shards: int = 4, sessions: int = 0, **head: Any) -> bytes:
    """An export with these things in it, and a digest that fits."""
    file = io.BytesIO()
    writer = ExportWriter(file.write, Head("1f", "bank", shards, sessions, Numbers(1, 1), **head))
    for change in changes:
        change(writer)
    writer.end()
    return file.getvalue()


def row(table: Table, shard: int, row: TableRow) -> Change:
    return lambda writer: writer.row(table, shard, row)


def end(shard: int, position: int = 0) -> Change:
    return lambda writer: writer.shard(ShardEnd(shard, 1, position))


def raw(content: object) -> Change:
    return lambda writer: writer._put(content)


HOME = shard_of("alice", 4)
BEFORE = [end(shard) for shard in range(HOME)]
AFTER = [end(shard) for shard in range(HOME + 1, 4)]


@pytest.mark.parametrize(
    ("changes", "story"),
    [
        ([*BEFORE], "some are missing"),
        ([raw(["session", 1, "x"])], "Session"),
        ([raw(["entities", 0, ["Account", "alice"]])], "EntityRow"),
        ([raw(["entities", 0, 7])], "EntityRow"),
        ([raw(["sagas", 0, []])], "does not know"),
        ([raw({"a": 1})], "does not know"),
        ([raw([[[]]])], "does not know"),
        ([raw(msgspec.Raw(b"\x91" * 100_000 + b"\xc0"))], "no MessagePack"),
        ([raw(msgspec.Raw(b"\xdd\xff\xff\xff\xff"))], "no MessagePack"),
        ([raw(msgspec.Raw(b"\xc6\xff\xff\xff\xff"))], "no MessagePack|before its end"),
        ([raw(msgspec.Raw(b"\xc1"))], "no MessagePack"),
        ([row(Table.ENTITIES, 3 - HOME, entity("alice", 1))], "shard"),
        ([*BEFORE, row(Table.MAILBOX, HOME, mail("alice", 8)), end(HOME, 7), *AFTER], "before what it holds"),
        ([*BEFORE, row(Table.OUTBOX, HOME, message(9 << 16)), end(HOME, 8), *AFTER], "before what it holds"),
        (
            [*BEFORE, row(Table.HISTORY, HOME, commit(3, "alice", 1)), row(Table.HISTORY, HOME, commit(3, "alice", 2))],
            "follows 3",
        ),
        ([end(1)], "out of order"),
        ([raw(["session", 1 << 63, 0])], "cannot be"),
        ([raw(["session", 2, 0])], "client 2, and 1 is the last"),
        ([raw(["shard", 0, -1, 0])], "cannot be"),
        ([*BEFORE, row(Table.ENTITIES, HOME, entity("alice", 1 << 63))], "cannot be"),
        ([*BEFORE, row(Table.TIMERS, HOME, timer("alice", "close", 1 << 63))], "cannot be"),
    ],
)
async def test_a_file_that_fits_its_digest_is_not_believed_either(changes: list[Change], story: str) -> None:
    """J14: sizes, depths, types, shards and positions are checked; what is loaded by then is nobody's store."""
    target = MemoryStore()
    with pytest.raises(DamagedExport, match=story):
        await imported(target, made(*changes))
    with pytest.raises(IncompatibleStore, match="has not ended"):
        await target.open("bank", 4)


@pytest.mark.parametrize(
    ("content", "error", "story"),
    [
        (made(version=2), DamagedExport, "version 2"),
        (made(format="x"), DamagedExport, "no export"),
        (made(shards=8), IncompatibleStore, "set shards to 8"),
    ],
)
async def test_an_export_of_another_kind_is_refused(content: bytes, error: type[Exception], story: str) -> None:
    """J13: another version, app or shard count: told so before the target is made."""
    for app in ("bank",):
        target = MemoryStore()
        with pytest.raises(error, match=story):
            await imported(target, content, app)
        await target.open("another", 1)


async def test_an_export_of_another_app_is_refused(source: MemoryStore) -> None:
    """J13: and before the target is made."""
    content = await exported(source, "bank", PLAIN)
    with pytest.raises(IncompatibleStore, match="of the app 'bank', not 'shop'"):
        await imported(MemoryStore(), content, "shop")


async def test_an_interrupted_import_goes_on_with_the_same_file_only(source: MemoryStore) -> None:
    """J13: what was loaded before is loaded again, and once."""
    content, other = await exported(source, "bank", PLAIN), await exported(source, "bank", PLAIN)

    class Stopping(MemoryStore):
        parts = 0

        async def load(self, writes: Any) -> None:
            self.parts += 1
            if self.parts == 3:
                raise KeyboardInterrupt
            await super().load(writes)

    target = Stopping()
    with pytest.raises(KeyboardInterrupt):
        await imported(target, content)
    with pytest.raises(IncompatibleStore, match="has not ended"):
        await imported(target, other)
    await imported(target, content)
    await target.open("bank", 4)
    assert await holds(target) == await holds(source)
    with pytest.raises(IncompatibleStore, match="holds"):
        await imported(target, content)


def test_a_file_is_there_when_it_is_complete_and_takes_nobodys_place(tmp_path: Path) -> None:
    """J12: an export that fails leaves nothing, and only its owner may read one."""
    path = tmp_path / "bank.export"

    def fail() -> None:
        with new_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as file:
        file.write(b"all")
    assert (path.read_bytes(), path.stat().st_mode & 0o777, len(list(tmp_path.iterdir()))) == (b"all", 0o600, 1)
    with pytest.raises(FileExistsError, match="exists"), new_file(path):
        pass
