"""Stores of every schema version that was released open, and say what they said then."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import apsw
import msgspec
import pytest
from store_dump import Dump, dump
from store_rows import KIND, letter, mail, message, timer

from atoll.actors.errors import CorruptRecord, Fenced, IncompatibleStore
from atoll.persistence import sqlite_schema
from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.spi import PendingWork, TableWrite
from atoll.persistence.sqlite import SQLiteStore
from atoll.persistence.sqlite_file import SCHEMA_VERSION

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_store", FIXTURES / "make_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fixture(version: int, folder: Path) -> Dump:
    """Copy a fixture; return what it says."""
    shutil.copytree(FIXTURES / f"store-v{version}", folder)
    return msgspec.json.decode((FIXTURES / f"store-v{version}.json").read_bytes(), type=Dump)


def schema_of(folder: Path, file: str = "tables.db") -> int:
    connection = apsw.Connection(str(folder / file))
    try:
        return connection.pragma("user_version")
    finally:
        connection.close()


def tables_of(folder: Path) -> dict[str, str]:
    """What the tables are made of: their SQL by name."""
    connection = apsw.Connection(str(folder / "tables.db"))
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    finally:
        connection.close()
    return {name: " ".join(line.split("--")[0].strip() for line in sql.splitlines()) for name, sql in rows}


@pytest.mark.parametrize("version", [1, 2, 3, 4])
async def test_a_store_of_an_old_schema_keeps_all_its_data(tmp_path: Path, version: int) -> None:
    """J13: rows of every table and log of a store that an earlier version wrote are read back as that version read them,
    and work goes on in it."""
    made = maker()
    folder = tmp_path / "store"
    expected = fixture(version, folder)
    assert schema_of(folder) == version
    assert expected.history[1], "an empty fixture proves nothing"
    assert expected.logs[1].keys() == {3, 4}
    assert bool(expected.mailbox and expected.outbox and expected.timers and expected.dead_letters) == (version > 1)
    facts = [(row.draining, row.version, row.weight) for row in expected.hosts]
    if version == 1:  # rows from before planned moves
        assert set(facts) == {(False, "", 1.0)}
        assert {row.target for row in expected.shards} == {None}
    else:
        assert facts[1] == (True, "1.4.0", 2.5)
        assert expected.shards[0].target == 3
    assert [row.pin for row in expected.shards] == (["node-2", None, "", None] if version > 2 else [None] * 4)
    for _ in range(2):  # once more, when nothing is left to do
        store = SQLiteStore(folder)
        await store.open(made.APP, made.SHARDS)
        try:
            assert await dump(store, **made.QUESTIONS) == expected
        finally:
            await store.close()
        assert schema_of(folder) == SCHEMA_VERSION
    store = SQLiteStore(folder)
    await store.open(made.APP, made.SHARDS)
    try:
        with pytest.raises(Fenced):
            await store.append(1, 5, b"late")
        await store.append(2, 2, b"on it goes")
        assert await store.register_host("10.0.0.4:7700", "node-4", None) == 4
        assert await store.open_session() == 5
        pending = TableWrite(
            0,
            2,
            mailbox=(mail("carol", 20),),
            outbox=(message(20 << 16),),
            timers=(timer("carol", "x", 1 << 50),),
            dead_letters=(letter(20),),
        )
        assert await store.checkpoint(2, [pending]) == frozenset()
        assert await store.read_mailbox(0, KIND, "carol") == [mail("carol", 20)]
        assert (await store.read_pending([0]))[0].outbox[-1] == message(20 << 16)
        assert (await store.read_timers(0, BEFORE_ALL_TIMERS, 1 << 60, 99))[-1] == timer("carol", "x", 1 << 50)
        assert await store.read_dead_letters(0, 19) == [letter(20)]
    finally:
        await store.close()
    assert sorted(path.name for path in folder.rglob("*.db*")) == [
        "1.db",
        "2.db",
        "3.db",
        "4.db",
        "leases.db",
        "tables.db",
    ]


async def test_an_old_store_becomes_what_a_new_one_is(tmp_path: Path) -> None:
    """J13: the same tables and indexes, whichever way they came; and a log made since then is refused by older code, which
    would read over what its records say of pending work."""
    made = maker()
    fixture(1, tmp_path / "old")
    for name in ("old", "new"):
        store = SQLiteStore(tmp_path / name)
        await store.open(made.APP, made.SHARDS)
        await store.register_host("a:1", "node", None)
        await store.close()
    assert tables_of(tmp_path / "old") == tables_of(tmp_path / "new")
    assert schema_of(tmp_path / "old", "logs/4.db") == schema_of(tmp_path / "new", "logs/1.db") == SCHEMA_VERSION


async def test_many_open_an_old_store_at_once(tmp_path: Path) -> None:
    """J13: one of them brings it up to date, the others wait for that, and all work on it."""
    made = maker()
    expected = fixture(1, tmp_path / "store")
    stores = [SQLiteStore(tmp_path / "store") for _ in range(5)]
    try:
        await asyncio.gather(*(store.open(made.APP, made.SHARDS) for store in stores))
        for store in stores:
            assert await store.shards() == expected.shards
            assert await store.read_pending([0]) == [PendingWork(0, (), (), 0)]
    finally:
        for store in stores:
            await store.close()


async def test_a_migration_that_stops_half_way_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J13: it is one transaction; the next one that opens the store does it whole."""
    made = maker()
    folder = tmp_path / "store"
    expected = fixture(1, folder)
    before = tables_of(folder)
    with monkeypatch.context() as patched:
        patched.setitem(sqlite_schema.VERSIONS, 2, sqlite_schema.VERSIONS[2] + "; SELECT no_such_function()")
        with pytest.raises(CorruptRecord, match="no_such_function"):
            await SQLiteStore(folder).open(made.APP, made.SHARDS)
    assert (schema_of(folder), tables_of(folder)) == (1, before)
    store = SQLiteStore(folder)
    await store.open(made.APP, made.SHARDS)
    try:
        assert await dump(store, **made.QUESTIONS) == expected
    finally:
        await store.close()


@pytest.mark.parametrize("why", ["another app", "another shard count", "another machine", "newer leases"])
async def test_an_old_store_that_is_refused_is_not_brought_up_to_date(tmp_path: Path, why: str) -> None:
    """J13: who opens the wrong store has changed nothing in it: the older version that it belongs to still can."""
    made = maker()
    folder = tmp_path / "store"
    fixture(1, folder)
    app, shards = ("shop" if why == "another app" else made.APP), (8 if why == "another shard count" else made.SHARDS)
    if why == "another machine":
        (folder / "machine").write_text('{"machine": "0123", "boot": "another"}')
    if why == "newer leases":
        connection = apsw.Connection(str(folder / "leases.db"))
        connection.pragma("user_version", SCHEMA_VERSION + 1)
        connection.close()
    before = {path: path.read_bytes() for path in folder.rglob("*.db")}
    with pytest.raises(IncompatibleStore):
        await SQLiteStore(folder).open(app, shards)
    assert {path: path.read_bytes() for path in folder.rglob("*.db")} == before


async def test_the_fixture_is_what_this_version_would_make(tmp_path: Path) -> None:
    """J13: as long as its schema is the newest, the same calls make a store that says the same."""
    made = maker()
    store = SQLiteStore(tmp_path / "store")
    await store.open(made.APP, made.SHARDS)
    try:
        await made.fill(store)
        found = await dump(store, **made.QUESTIONS)
    finally:
        await store.close()
    assert found == msgspec.json.decode((FIXTURES / f"store-v{SCHEMA_VERSION}.json").read_bytes(), type=Dump)
