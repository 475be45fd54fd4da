"""Damage in a store is found, and named by its place."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import apsw
import asyncpg
import pytest
from store_rows import KIND, client, commit, entity, letter, mail, message, named, own, timer, without_snapshot
from upkeep_app import silent

from atoll.actors.errors import CorruptRecord
from atoll.actors.settings import Settings
from atoll.cluster.store_check import check_store
from atoll.persistence.checksum import unwrap, wrap
from atoll.persistence.open import open_store
from atoll.persistence.records import Record, encode_batch
from atoll.persistence.spi import CheckpointEnd, Store, TableWrite
from atoll.persistence.sqlite import SQLiteStore
from atoll.sharding.charge import StoreInUse
from atoll.sharding.hashing import shard_of

SETTINGS = Settings(shards=4, lease_s=0.05)
SHARD = shard_of("alice", 4)
OTHER = next(id for id in map(str, range(99)) if shard_of(id, 4) == SHARD)
"""Of the same shard."""


async def fill(store: Store) -> None:
    """Something in every table of one shard, events that no snapshot covers in history and in the log, and a host that
    is silent."""
    await store.open("bank", 4)
    host = await store.register_host("127.0.0.1:2", "", None)
    epochs = await own(store, host)
    write = TableWrite(
        SHARD,
        epochs[SHARD],
        entities=(entity("alice", 3), without_snapshot(OTHER, 3)),
        clients=(client(1, 4, 4, 5),),
        named=(named("alice", "order-1"),),
        mailbox=(mail("alice", 8),),
        outbox=(message(2 << 16, "alice"),),
        timers=(timer("alice", "close", 9000),),
        dead_letters=(letter(3, "alice"),),
        end=CheckpointEnd(12, tuple(commit(position, OTHER, seq) for seq, position in enumerate((2, 5, 12), 1))),
    )
    await store.checkpoint(host, [write])
    for n in (1, 2, 3):
        tail = Record(SHARD, 12 + n, KIND, OTHER, 3 + n, events=commit(12 + n, OTHER, 3 + n).events)
        await store.append(host, n, encode_batch([tail], host, n))


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    store = SQLiteStore(tmp_path / "store")
    await fill(store)
    await store.close()
    return tmp_path / "store"


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(folder)
    await store.open("bank", 4)
    try:
        yield store
    finally:
        await store.close()


async def checked(folder: Path) -> list[str]:
    """What is found, be it that the store cannot even be opened."""
    try:
        async with opened(folder) as store:
            return await check_store(store, SETTINGS, silent)
    except CorruptRecord as error:
        return [str(error)]


def execute(path: Path, sql: str, *bindings: bytes | int | str) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute(sql, bindings)
        assert connection.changes(), f"it did not bite: {sql}"


async def test_what_is_whole_is_found_whole(folder: Path) -> None:
    """J14: also with the last events only in the log of a host that is gone; and nothing was changed by looking."""
    async with opened(folder) as store:
        before = (await store.shards(), await store.hosts(), await store.numbers())
    assert await checked(folder) == []
    async with opened(folder) as store:
        assert (await store.shards(), await store.hosts(), await store.numbers()) == before


@pytest.mark.parametrize(
    "table", ["entities", "clients", "named_replies", "history", "mailbox", "outbox", "timers", "dead_letters"]
)
async def test_a_flipped_bit_in_any_table_is_named(folder: Path, table: str) -> None:
    """J14: the line names the row."""
    execute(folder / "tables.db", f"UPDATE {table} SET row = CAST(row || x'00' AS BLOB)")
    (line, *_) = await checked(folder)
    assert f"shard {SHARD}" in line
    assert "checksum mismatch" in line


@pytest.mark.parametrize(
    ("sql", "story"),
    [
        ("DELETE FROM history", "index does not name"),
        ("DELETE FROM history_by_entity", "index does not name"),
        ("UPDATE history_by_entity SET first_seq = 2", "index does not name"),
        ("UPDATE entities SET seq = 9 WHERE seq = 3", "holds"),
        ("UPDATE mailbox SET entry = 9", "checksum"),
        ("UPDATE timers SET due_ms = 1", "holds"),
        ("DELETE FROM history_by_entity; DELETE FROM history", "events of version 1 are missing"),
    ],
)
async def test_tables_that_disagree_are_named(folder: Path, sql: str, story: str) -> None:
    """J14: columns and rows, history and its index, entities and their events."""
    execute(folder / "tables.db", sql)
    assert any(story in line for line in await checked(folder))


def log_of(folder: Path) -> Path:
    return folder / "logs" / "1.db"


@pytest.mark.parametrize(
    ("damage", "story"),
    [
        (lambda f: execute(log_of(f), "DELETE FROM log WHERE n = 2"), "row 3: follows 1"),
        (lambda f: execute(log_of(f), "DELETE FROM log WHERE n = 1"), "expected position 13"),
        (lambda f: execute(log_of(f), "UPDATE log SET content = x'0102' WHERE n = 2"), "log 1, row 2"),
        (lambda f: log_of(f).unlink(), "1.db is missing"),
        (lambda f: execute(f / "leases.db", "UPDATE hosts SET state = 'odd'"), "state 'odd'"),
        (lambda f: execute(f / "leases.db", "UPDATE hosts SET about = x'01'"), "host 1"),
        (lambda f: execute(f / "leases.db", "DELETE FROM hosts"), "incarnation 1"),
    ],
)
async def test_lost_and_damaged_log_rows_and_hosts_are_named(
    folder: Path, damage: Callable[[Path], None], story: str
) -> None:
    """J14, J16: a log with a hole, one that does not reach p, one that is not there, one that belongs to nobody."""
    damage(folder)
    found = await checked(folder)
    assert any(story in line for line in found), found


async def test_a_position_that_went_back_is_named(folder: Path) -> None:
    """J10: what the tables hold lies above the shard's last position."""
    async with opened(folder) as store:
        row = (await store.shards())[SHARD]
    with contextlib.closing(apsw.Connection(str(folder / "tables.db"))) as connection:
        ((blob,),) = connection.execute("SELECT row FROM shards WHERE shard = ?", (SHARD,))
    body = unwrap(blob, f"shard {SHARD}")
    assert body.count(b"\xa8position\x0c") == 1, (body, row)
    back = wrap(body.replace(b"\xa8position\x0c", b"\xa8position\x01"), f"shard {SHARD}")
    execute(folder / "tables.db", "UPDATE shards SET row = ? WHERE shard = ?", back, SHARD)
    found = await checked(folder)
    assert any("expected position 2" in line for line in found)
    assert any(f"shard {SHARD} ends at position 1, and holds 8" in line for line in found), found


async def test_a_damaged_page_is_named(folder: Path) -> None:
    """J14: SQLite's own check of a file is part of it."""
    path = folder / "tables.db"
    content = bytearray(path.read_bytes())
    for page in range(4, len(content) // 4096):
        content[page * 4096 + 3 : page * 4096 + 5] = b"\xff\xff"  # how many cells it has
    path.write_bytes(content)
    assert any("tables.db" in line for line in await checked(folder))


async def test_a_store_that_is_written_is_not_checked(folder: Path) -> None:
    """J14: a host that begins meanwhile makes what was found worth nothing, and the user is told."""
    async with opened(folder) as store, opened(folder) as other:
        starting = await other.register_host("127.0.0.1:3", "", None)

        async def check(shard: int | None, look: Callable[[int | None], object] = store.check) -> object:
            if shard == 3:
                await own(other, starting, 0)
            return await look(shard)  # type: ignore[misc]  # it is the store's own

        store.check = check  # type: ignore[method-assign,assignment]  # an app starts in the middle
        with pytest.raises(StoreInUse, match="meanwhile"):
            await check_store(store, SETTINGS, silent)


@pytest.mark.parametrize(
    ("sql", "story"),
    [
        ("UPDATE shards SET row = row", ""),
        ("UPDATE entities SET row = row || '\\x00'::bytea", "checksum mismatch"),
        ("UPDATE history SET row = row || '\\x00'::bytea", "checksum mismatch"),
        ("DELETE FROM history_by_entity", "index does not name"),
        ("DELETE FROM log WHERE n = 2", "row 3: follows 1"),
        ("UPDATE hosts SET state = 'odd'", "state 'odd'"),
    ],
)
async def test_damage_in_postgresql_is_named_too(postgres_url: str, sql: str, story: str) -> None:
    """J14: and what is whole is found whole there."""
    store = open_store(postgres_url)
    await fill(store)
    connection = await asyncpg.connect(postgres_url)
    assert (await connection.execute(sql)).split()[-1] != "0", "it did not bite"
    await connection.close()
    found = await check_store(store, SETTINGS, silent)
    await store.close()
    assert any(story in line for line in found) if story else found == [], found
