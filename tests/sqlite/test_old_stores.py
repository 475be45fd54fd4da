"""Stores of every schema version that was released open, and say what they said then."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from store_dump import Dump, dump

from atoll.actors.errors import Fenced
from atoll.persistence.sqlite import SQLiteStore

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_store", FIXTURES / "make_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", [1])
async def test_a_store_of_an_old_schema_keeps_all_its_data(tmp_path: Path, version: int) -> None:
    """J13: rows of every table and log of a store that an earlier version wrote are read back as that version read them,
    and work goes on in it."""
    made = maker()
    folder = tmp_path / "store"
    shutil.copytree(FIXTURES / f"store-v{version}", folder)
    expected = msgspec.json.decode((FIXTURES / f"store-v{version}.json").read_bytes(), type=Dump)
    assert expected.history[1], "an empty fixture proves nothing"
    assert expected.logs[1].keys() == {3, 4}
    store = SQLiteStore(folder)
    await store.open(made.APP, made.SHARDS)
    try:
        assert await dump(store, **made.QUESTIONS) == expected
        with pytest.raises(Fenced):
            await store.append(1, 5, b"late")
        await store.append(2, 2, b"on it goes")
        assert await store.register_host("10.0.0.4:7700", "node-4", None) == 4
        assert await store.open_session() == 5
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


async def test_the_fixture_is_what_this_version_would_make(tmp_path: Path) -> None:
    """J13: as long as schema 1 is the newest, the same calls make a store that says the same."""
    made = maker()
    store = SQLiteStore(tmp_path / "store")
    await store.open(made.APP, made.SHARDS)
    try:
        await made.fill(store)
        found = await dump(store, **made.QUESTIONS)
    finally:
        await store.close()
    assert found == msgspec.json.decode((FIXTURES / "store-v1.json").read_bytes(), type=Dump)
