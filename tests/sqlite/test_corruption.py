"""Damage is reported with its place, and never read as something else (J14)."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import apsw
import pytest
from luck import Luck
from store_process import APP, SHARDS
from store_rows import KIND, batch, client, commit, ending, entity, letter, mail, message, named, own, timer

from atoll.actors.errors import AtollError, CorruptRecord
from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.records import Record, decode_batch
from atoll.persistence.spi import CheckpointEnd, TableWrite
from atoll.persistence.sqlite import SQLiteStore

Open = Callable[[], Awaitable[SQLiteStore]]


@pytest.fixture
async def host(open_store: Open) -> int:
    """A store with something in every table, twice, and in a sealed log; closed again."""
    store = await open_store()
    host = await store.register_host("127.0.0.1:7700", "node-1", None)
    await store.register_host("127.0.0.1:7701", "node-2", None)
    epochs = await own(store, host)
    commits = tuple(commit(position, "a", position) for position in range(1, 6))
    write = TableWrite(
        0,
        epochs[0],
        entities=tuple(entity(id, 5) for id in "abc"),
        clients=(client(7, 3, 3, 4), client(8, 1, 1)),
        named=(named("a", "order-17"), named("b", "order-17")),
        mailbox=(mail("a", 4), mail("a", 5), mail("b", 3)),
        outbox=(message(1), message(2)),
        timers=(timer("a", "x", 5), timer("b", "x", 9)),
        dead_letters=(letter(1), letter(2)),
        end=CheckpointEnd(5, commits),
    )
    await store.checkpoint(host, [write, ending(1, epochs[1], 1, commit(1, "z", 1))])
    for n in range(1, 20):
        await store.append(host, n, batch(host, n))
    await store.seal(host)
    await store.close()
    return host


class Blob(NamedTuple):
    """Where a table keeps its blob, what reads it, and how it comes to another place."""

    column: str
    place: str
    read: Callable[[SQLiteStore], Awaitable[object]]
    move: str


BLOBS = {
    "shards": Blob(
        "row",
        "shard 0",
        lambda store: store.shards(),
        "UPDATE shards SET row = (SELECT row FROM shards WHERE shard = 1) WHERE shard = 0",
    ),
    "entities": Blob(
        "row",
        f"entity {KIND}/'a' of shard 0",
        lambda store: store.read_entity(0, KIND, "a"),
        "UPDATE entities SET row = (SELECT row FROM entities WHERE id = 'b') WHERE id = 'a'",
    ),
    "clients": Blob(
        "row",
        "client 7 of shard 0",
        lambda store: store.read_clients(0),
        "UPDATE clients SET row = (SELECT row FROM clients WHERE client = 8) WHERE client = 7",
    ),
    "named_replies": Blob(
        "row",
        "reply 'order-17' of Account/'a'",
        lambda store: store.read_named(0, KIND, "a", "order-17"),
        "UPDATE named_replies SET row = (SELECT row FROM named_replies WHERE id = 'b') WHERE id = 'a'",
    ),
    "history": Blob(
        "row",
        "history of shard 0 from position 1",
        lambda store: store.read_history(0),
        "UPDATE history SET row = (SELECT row FROM history WHERE shard = 1) WHERE shard = 0",
    ),
    "mailbox": Blob(
        "row",
        f"mailbox entry 4 of {KIND}/'a' in shard 0",
        lambda store: store.read_mailbox(0, KIND, "a"),
        "UPDATE mailbox SET row = (SELECT row FROM mailbox WHERE entry = 5) WHERE entry = 4",
    ),
    "outbox": Blob(
        "row",
        "message 1 in the outbox of shard 0",
        lambda store: store.read_pending([0]),
        "UPDATE outbox SET row = (SELECT row FROM outbox WHERE number = 2) WHERE number = 1",
    ),
    "timers": Blob(
        "row",
        f"timer 'x' of {KIND}/'a' in shard 0",
        lambda store: store.read_timers(0, BEFORE_ALL_TIMERS, 99, 99),
        "UPDATE timers SET row = (SELECT row FROM timers WHERE id = 'b') WHERE id = 'a'",
    ),
    "dead_letters": Blob(
        "row",
        "dead letter 1 of shard 0",
        lambda store: store.read_dead_letters(0),
        "UPDATE dead_letters SET row = (SELECT row FROM dead_letters WHERE number = 2) WHERE number = 1",
    ),
    "hosts": Blob(
        "about",
        "host 2",
        lambda store: store.hosts(),
        "UPDATE hosts SET about = (SELECT about FROM hosts WHERE incarnation = 1)",
    ),
}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "moved", "newer format"])
@pytest.mark.parametrize("table", BLOBS)
@pytest.mark.usefixtures("host")
async def test_a_damaged_row_is_reported_with_its_place(
    folder: Path, open_store: Open, table: str, damage: str
) -> None:
    """J14: every stored row proves itself, bound to its place."""
    blob = BLOBS[table]
    connection = apsw.Connection(str(folder / ("leases.db" if table == "hosts" else "tables.db")))
    sql = {
        "flipped": f"UPDATE {table} SET {blob.column} = CAST(substr({blob.column}, 1, length({blob.column}) - 1) || x'c1' AS BLOB)",
        "truncated": f"UPDATE {table} SET {blob.column} = substr({blob.column}, 1, length({blob.column}) - 1)",
        "emptied": f"UPDATE {table} SET {blob.column} = x''",
        "moved": blob.move,
        "newer format": f"UPDATE {table} SET {blob.column} = CAST(x'02' || substr({blob.column}, 2) AS BLOB)",
    }[damage]
    connection.execute(sql)
    assert connection.changes() > 0
    connection.close()
    with pytest.raises(CorruptRecord, match=blob.place):
        await blob.read(await open_store())  # some are read when the store is opened


@pytest.mark.usefixtures("host")
async def test_a_damaged_entry_is_not_counted_over(folder: Path, open_store: Open) -> None:
    """J14: an attempt is not counted in a row that does not prove itself: the checkpoint says where it stopped, and left
    nothing behind."""
    connection = apsw.Connection(str(folder / "tables.db"))
    connection.execute(
        "UPDATE mailbox SET row = CAST(substr(row, 1, length(row) - 1) || x'c1' AS BLOB) WHERE entry = 4"
    )
    connection.close()
    store = await open_store()
    (row,) = [row for row in await store.shards() if row.shard == 0]
    assert row.owner is not None
    write = TableWrite(0, row.epoch, mailbox_attempts=((KIND, "a", 4, 1),), outbox_done=(1,))
    with pytest.raises(CorruptRecord, match=f"mailbox entry 4 of {KIND}/'a' in shard 0"):
        await store.checkpoint(row.owner, [write])
    assert (await store.read_pending([0]))[0].outbox == (message(1), message(2))


async def test_columns_that_contradict_their_row_are_reported(folder: Path, open_store: Open, host: int) -> None:
    """J14: what SQL compares is compared with what the row says."""
    connection = apsw.Connection(str(folder / "tables.db"))
    connection.execute("UPDATE entities SET seq = 6 WHERE id = 'a'")
    connection.execute("UPDATE clients SET floor = 2")
    connection.execute("UPDATE named_replies SET time_ms = 5")
    connection.execute("UPDATE history SET last_position = 9 WHERE shard = 0")
    connection.execute("UPDATE mailbox SET bytes = 5 WHERE id = 'b'")
    connection.execute("UPDATE timers SET due_ms = 6")
    connection.close()
    connection = apsw.Connection(str(folder / "leases.db"))
    connection.execute("UPDATE hosts SET state = 'lively' WHERE incarnation = ?", (host,))
    connection.close()
    with pytest.raises(CorruptRecord, match="lively"):
        await open_store()
    connection = apsw.Connection(str(folder / "leases.db"))
    connection.execute("UPDATE hosts SET state = 'sealed'")
    connection.close()
    store = await open_store()
    for read in (
        store.read_entity(0, KIND, "a"),
        store.read_clients(0),
        store.read_named(0, KIND, "a", "order-17"),
        store.read_history(0),
        store.read_commits(0, KIND, "a"),
        store.delete_history(0, KIND, "a", 1),
        store.read_mailbox(0, KIND, "b"),
        store.read_timers(0, BEFORE_ALL_TIMERS, 99, 99),
    ):
        with pytest.raises(CorruptRecord, match="holds"):
            await read
    assert await store.read_entity(0, KIND, "b") == entity("b", 5)


@pytest.mark.parametrize("damage", ["row lost", "seal damaged", "row taken for a seal", "seal taken for a row"])
async def test_a_damaged_log_is_reported_with_its_place(folder: Path, open_store: Open, host: int, damage: str) -> None:
    """J14: a hole, and whatever is not the seal that it says it is."""
    sql, place = {
        "row lost": ("DELETE FROM log WHERE n = 7", "row 8: follows 6"),
        "seal damaged": ("UPDATE log SET content = substr(content, 2) WHERE seal", "seal 20"),
        "row taken for a seal": ("UPDATE log SET seal = 1 WHERE n = 5", "seal 5"),
        "seal taken for a row": ("UPDATE log SET seal = 0", "row 20"),
    }[damage]
    connection = apsw.Connection(str(folder / "logs" / f"{host}.db"))
    connection.execute(sql)
    connection.close()
    store = await open_store()
    with pytest.raises(CorruptRecord, match=rf"log {host}, {place}"):
        await decoded(store, host)


async def decoded(store: SQLiteStore, host: int) -> list[list[Record]]:
    """What recovery reads of a log."""
    return [decode_batch(row.content, host, row.n) for row in await store.read_log(host)]


async def test_a_log_under_another_logs_name_is_reported(folder: Path, open_store: Open, host: int) -> None:
    """J14, PR02: each log knows its incarnation from birth."""
    store = await open_store()
    other = await store.register_host("b:1", "n", None)
    await store.close()
    shutil.copy(folder / "logs" / f"{host}.db", folder / "logs" / f"{other}.db")
    store = await open_store()
    for call in (store.read_log(other), store.append(other, 1, b"x"), store.seal(other)):
        with pytest.raises(CorruptRecord, match=f"log {other}, birth row"):
            await call


async def test_a_page_that_hides_its_newest_row_is_found_by_who_takes_over(folder: Path, open_store: Open) -> None:
    """J14: a row that a damaged page no longer counts leaves no hole behind, so the whole file is looked over before
    anybody builds on it."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    for n in (1, 2, 3):
        await store.append(host, n, batch(host, n))
    await store.close()
    path = folder / "logs" / f"{host}.db"
    connection = apsw.Connection(str(path))
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'log'").fetchall()
    connection.close()
    content = bytearray(path.read_bytes())
    cells = (page - 1) * 4096 + 3  # the page's count of cells, two bytes
    assert content[cells : cells + 2] == b"\x00\x04", "birth row and three batches"
    content[cells + 1] = 3
    path.write_bytes(content)
    store = await open_store()
    assert len(await store.read_log(host)) == 2, "the fault did not bite"
    for _ in range(2):
        with pytest.raises(CorruptRecord, match=f"log {host}"):
            await store.seal(host)


async def test_random_damage_to_a_log_is_found_or_harmless(folder: Path, host: int) -> None:
    """J14: bits flipped anywhere in the file, pages included that only SQLite reads: who takes over reads exactly what
    was written, or is told. Nothing else, on any seed."""
    luck = Luck()
    path = folder / "logs" / f"{host}.db"
    original = path.read_bytes()
    expected = [decode_batch(batch(host, n), host, n) for n in range(1, 20)]
    told = 0
    for round_ in range(150):
        damaged = bytearray(original)
        if round_ % 5:
            for _ in range(luck.choice([1, 1, 1, 8])):
                damaged[luck.randrange(len(damaged))] ^= 1 << luck.randrange(8)
        else:
            del damaged[luck.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        store = SQLiteStore(folder)
        await store.open(APP, SHARDS)
        try:
            await store.seal(host)
            assert await decoded(store, host) == expected, (round_, luck)
        except AtollError:
            told += 1
        finally:
            await store.close()
        for left in (Path(f"{path}-wal"), Path(f"{path}-shm")):
            left.unlink(missing_ok=True)
    assert told > 20, ("the damage did not bite", luck)


@pytest.mark.usefixtures("host")
async def test_a_truncated_file_is_reported(folder: Path) -> None:
    """J14: tables.db and leases.db cut off by more than a page are reported with the file's name, when opened or when read."""
    for name in ("tables.db", "leases.db"):
        path = folder / name
        original = path.read_bytes()
        for size in range(0, len(original) - 4096, 4096 + 1234):
            path.write_bytes(original[:size])
            store = SQLiteStore(folder)
            with pytest.raises(AtollError, match=name.replace(".", r"\.")):
                await use_everything(store)
            await store.close()
        path.write_bytes(original)


async def use_everything(store: SQLiteStore) -> None:
    await store.open(APP, SHARDS)
    await store.hosts()
    await store.sessions()
    await store.read_entity(0, KIND, "a")
    await store.read_clients(0)
    await store.read_named(0, KIND, "a", "order-17")
    await store.read_commits(0, KIND, "a")
    await store.read_pending([0])
    await store.read_mailbox(0, KIND, "a")
    await store.read_timers(0, BEFORE_ALL_TIMERS, 99, 99)
    await store.read_dead_letters(0)
    await store.register_host("b:1", "n", None)
