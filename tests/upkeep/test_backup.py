"""A backup of a running SQLite store: one instant of all its files, to go on from beside the original."""

from __future__ import annotations

import asyncio
import copy
import random
from pathlib import Path

import pytest
from bank_of_messages import Load
from upkeep_app import APP, silent, two_hosts

from atoll.actors.errors import IncompatibleStore
from atoll.persistence.spi import HostState
from atoll.persistence.sqlite import SQLiteStore


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def backed_up_while_it_works(folder: Path, seed: int, pause_s: float) -> None:
    luck = random.Random(seed)
    async with (
        two_hosts(folder / "first") as first,
        first.connect() as client,
    ):
        load = Load(client, "a", luck)
        await load.open()
        over = asyncio.Event()
        working = asyncio.create_task(load.work(over))
        await asyncio.sleep(pause_s)
        acknowledged = set(load.acknowledged)
        store = SQLiteStore(folder / "first" / "store")
        await store.open(APP, 8)
        await store.backup(folder / "second" / "store", silent)
        await store.close()
        assert not over.is_set()
        await asyncio.sleep(0.1)
        over.set()
        await working
        assert len(load.acknowledged) > len(acknowledged), "nothing was done meanwhile: it proves too little"
        async with (
            two_hosts(folder / "second") as second,
            second.connect() as other,
        ):
            there = copy.copy(load)
            there._cluster, there.acknowledged = other, acknowledged
            await there.settle()
            await there.check()
            await load.settle()
            await load.check()
        assert [host.alive for host in first.hosts] == [True, True]


async def test_a_backup_beside_running_hosts_is_one_instant(tmp_path: Path) -> None:
    """J05, M06, M07, S15: the copy holds all that was acknowledged before, and whatever hangs together: money,
    messages, tells and timers come to their end there as if everything had stopped at once. The original goes on, and
    its hosts live."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - what replays it
    await backed_up_while_it_works(tmp_path, seed, 0.6)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
async def test_many_backups_beside_running_hosts(tmp_path: Path, seed: int) -> None:
    """J05, M06, M07: the same at other moments."""
    await backed_up_while_it_works(tmp_path, seed, random.Random(seed).uniform(0.3, 1.5))


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
