"""Copies of a running store: one instant of all that it holds, to go on from beside the original."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest
from bank_of_messages import Load
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer
from upkeep_app import APP, SETTINGS, silent, two_hosts

from atoll.actors.errors import IncompatibleStore
from atoll.actors.settings import Settings
from atoll.cluster.store_export import export_store, standing_still
from atoll.cluster.store_import import import_store
from atoll.cluster.system import SystemWorld
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.spi import HostState, Store
from atoll.persistence.sqlite import SQLiteStore


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


Copy = Callable[[Callable[[], None]], Awaitable[str]]
"""Copies the store of a running app; returns the URL of the copy. Calls its argument right before the instant of which
the copy is: the logs hold what was done last."""


class Marked(PostgresStore):
    def __init__(self, url: str, mark: Callable[[], None]) -> None:
        super().__init__(url)
        self._mark = mark

    def snapshot(self) -> AbstractAsyncContextManager[Store]:
        self._mark()
        return super().snapshot()


async def copied_while_it_works(
    folder: Path, seed: int, pause_s: float, copied: Copy, store: str | None = None
) -> None:
    luck = random.Random(seed)
    async with (
        two_hosts(folder / "first", store) as first,
        first.connect() as client,
    ):
        load = Load(client, "a", luck)
        await load.open()
        over = asyncio.Event()
        working = asyncio.create_task(load.work(over))
        await asyncio.sleep(pause_s)
        acknowledged: set[str] = set()
        there_url = await copied(lambda: acknowledged.update(load.acknowledged))
        assert not over.is_set()
        await asyncio.sleep(0.1)
        over.set()
        await working
        assert len(load.acknowledged) > len(acknowledged), "nothing was done meanwhile: it proves too little"
        async with (
            two_hosts(folder / "second", there_url) as second,
            second.connect() as other,
        ):
            there = copy.copy(load)
            there._cluster, there.acknowledged = other, acknowledged
            await there.settle()
            await there.check()
            await load.settle()
            await load.check()
        assert [host.alive for host in first.hosts] == [True, True]


def backup_of(folder: Path) -> Copy:
    """`atoll store backup` of the first app's folder."""

    async def copied(mark: Callable[[], None]) -> str:
        store = SQLiteStore(folder / "first" / "store")
        await store.open(APP, 8)
        mark()
        await store.backup(folder / "copy", silent)
        await store.close()
        return f"sqlite:{folder / 'copy'}"

    return copied


def export_of(url: str, folder: Path) -> Copy:
    """`atoll store export`, and an import into an SQLite store."""

    async def copied(mark: Callable[[], None]) -> str:
        settings, world = msgspec.convert(SETTINGS, Settings), SystemWorld()
        source = Marked(url, mark)
        await source.open(APP, settings.shards)
        try:
            async with standing_still(source, APP, settings, world, folder, silent) as still:
                with (folder / "file").open("wb") as file:
                    await export_store(
                        still, file, app=APP, settings=settings, world=world, software="a test", tell=silent
                    )
        finally:
            await source.close()
        with (folder / "file").open("rb") as file:
            await import_store(SQLiteStore(folder / "copy"), file, app=APP, settings=settings, tell=silent)
        return f"sqlite:{folder / 'copy'}"

    return copied


def dump_of(server: PostgresServer, database: str, folder: Path) -> Copy:
    """pg_dump as the owner, restored into another database, as deploy/README.md has it."""
    file = server.folder / f"{folder.name}.dump"

    def work(mark: Callable[[], None]) -> str:
        mark()
        server.tool("pg_dump", "--format=custom", f"--file={server.data / 'dump'}", server.owner_url(database))
        server.execute(f'CREATE DATABASE "{file.stem}" OWNER atoll_owner')
        server.tool(
            "pg_restore", "--exit-on-error", f"--dbname={server.admin_url(file.stem)}", str(server.data / "dump")
        )
        return server.url(file.stem)

    return lambda mark: asyncio.to_thread(work, mark)


def seeded() -> int:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - what replays it
    return seed


async def test_a_backup_beside_running_hosts_is_one_instant(tmp_path: Path) -> None:
    """J05, M06, M07, S15: the copy holds all that was acknowledged before, and whatever hangs together: money,
    messages, tells and timers come to their end there as if everything had stopped at once. The original goes on, and
    its hosts live."""
    await copied_while_it_works(tmp_path, seeded(), 0.6, backup_of(tmp_path))


async def test_an_export_of_an_app_that_runs_on_postgresql_is_one_instant(tmp_path: Path, postgres_url: str) -> None:
    """J05, M06, M07, S15: the same of a snapshot of all tables and logs, in another kind of store."""
    await copied_while_it_works(tmp_path, seeded(), 0.6, export_of(postgres_url, tmp_path), postgres_url)


@pytest.mark.soak
async def test_a_dump_of_an_app_that_runs_on_postgresql_is_one_instant(
    tmp_path: Path, postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """J05, M06, M07, S15: the same of what pg_dump makes."""
    copied = dump_of(postgres_databases.server, postgres_url.rpartition("/")[2], tmp_path)
    await copied_while_it_works(tmp_path, seeded(), 0.6, copied, postgres_url)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
async def test_many_copies_beside_running_hosts(tmp_path: Path, postgres_url: str, seed: int) -> None:
    """J05, M06, M07: the same at other moments."""
    pause_s = random.Random(seed).uniform(0.3, 1.5)
    await copied_while_it_works(tmp_path / "sqlite", seed, pause_s, backup_of(tmp_path / "sqlite"))
    (tmp_path / "postgresql").mkdir()
    copied = export_of(postgres_url, tmp_path / "postgresql")
    await copied_while_it_works(tmp_path / "postgresql", seed, pause_s, copied, postgres_url)


async def test_a_copy_knows_no_process_and_no_machine(tmp_path: Path) -> None:
    """S15: whoever starts on it can end nobody; hosts of the original are condemned there, and live here."""
    async with two_hosts(tmp_path / "first") as first:
        async with first.connect():
            source = SQLiteStore(tmp_path / "first" / "store")
            await source.open(APP, 8)
            await source.backup(tmp_path / "copy", silent)
            with pytest.raises(IncompatibleStore, match="exists"):
                await source.backup(tmp_path / "copy", silent)
            here = await source.hosts()
            await source.close()
        target = SQLiteStore(tmp_path / "copy")
        assert names(tmp_path / "copy") == ["leases.db", "logs", "tables.db"]
        await target.open(APP, 8)
        there = await target.hosts()
        await target.close()
    assert [(row.state, row.process is None) for row in here] == [(HostState.LIVE, False)] * 2
    assert [(row.state, row.process) for row in there] == [(HostState.GONE, None)] * 2
    assert names(tmp_path) == ["copy", "first"]
