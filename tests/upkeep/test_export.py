"""Export and import: an app that goes on in another store exactly where it was, and files that are not believed."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from bank_of_messages import Load
from plain_cluster import plain_cluster
from store_rows import client, commit, entity, letter, mail, message, named, own, timer

from atoll.actors.errors import IncompatibleStore
from atoll.actors.settings import Settings
from atoll.cluster.store_export import export_store, new_file, pages
from atoll.cluster.store_import import import_store
from atoll.cluster.system import SystemWorld
from atoll.persistence.export_format import END_BYTES, DamagedExport, ExportWriter, Head, Session, ShardEnd
from atoll.persistence.memory import MemoryStore
from atoll.persistence.open import open_store
from atoll.persistence.records import Record, encode_batch
from atoll.persistence.spi import CheckpointEnd, Numbers, ShardState, Store, TableWrite
from atoll.persistence.tables import Table, TableRow
from atoll.sharding.charge import NOBODY, StoreInUse, in_charge
from atoll.sharding.hashing import shard_of

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
APP = "messages"
SETTINGS: dict[str, Any] = {
    "shards": 8,
    "lease_s": 0.6,
    "lease_renew_s": 0.1,
    "store_poll_s": 0.05,
    "checkpoint_s": 0.2,  # so that tables and logs both hold some of it
    "tell_retry_first_s": 0.005,
    "tell_retry_max_s": 0.05,
    "tell_attempts_max": 30,
    "mailbox_commands_max": 12,
}
PLAIN = Settings(shards=4, lease_s=0.2)


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


async def exported(store: Store, app: str, settings: Settings) -> bytes:
    file = io.BytesIO()
    await export_store(
        store, file, app=app, settings=settings, world=SystemWorld(), software="a test", tell=silent
    )
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


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'second' / 'store'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


async def test_an_app_goes_on_in_another_store_where_it_was_killed(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """J05, M02, M05, M06, M07, M10, S15: hosts are killed with money reserved, messages on their way, tells accepted
    and timers set; what was exported from there ends in the other store as if nothing had happened, and a command ID is
    known there."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with plain_cluster("bank_of_messages:app", APP, tmp_path / "first", app_dir=HELPERS, hosts=2, settings=SETTINGS) as first:
        async with first.connect() as client:
            load = Load(client, "a", random.Random(seed))
            await load.open()
            await client.entity(_accounts(), "once").open.using(command_id="order-1")(10, is_closed=False)
            await load_for(load, 1.0)
        for host in first.hosts:
            host.kill()
    settings = msgspec.convert(SETTINGS, Settings)
    source = open_store(first.store_url)
    await source.open(APP, settings.shards)
    content = await exported(source, APP, settings)
    before = await holds(source)
    assert pending(before), "nothing was under way: the test proves nothing"
    numbers = await source.numbers()
    await source.close()

    assert await imported(open_store(target), content, APP, settings) == sum(map(len, before[0].values()))
    store = open_store(target)
    await store.open(APP, settings.shards)
    assert await holds(store) == before
    assert await store.numbers() == numbers
    await store.close()

    monkeypatch.setattr("plain_cluster.PlainCluster.__init__", at(target))
    async with (
        plain_cluster("bank_of_messages:app", APP, tmp_path / "second", app_dir=HELPERS, hosts=2, settings=SETTINGS) as second,
        second.connect() as client,
    ):
        load._cluster = client
        await client.entity(_accounts(), "once").open.using(command_id="order-1")(10, is_closed=False)
        await load_for(load, 0.5)
        await load.settle()
        await load.check()


