"""Real host processes over one store, killed and stopped at random under load; PostgreSQL's server, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from ledger import History, Journal, List
from luck import Luck
from plain_cluster import HostProcess, PlainCluster, plain_cluster
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer

from atoll.actors.errors import StoreUnavailable
from atoll.cluster.api import Cluster
from atoll.persistence.spi import HostRow, HostState

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ENTITIES = [(kind, f"e{i}") for kind in (List, Journal) for i in range(12)]
PATIENCE_S = 30.0


class EmptyStore(NamedTuple):
    url: str
    server: PostgresServer | None = None
    """Where it lies, when that is a process of its own."""


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyStore:
    if request.param == "sqlite":
        return EmptyStore(f"sqlite:{tmp_path / 'store'}")
    databases: PostgresDatabases = request.getfixturevalue("postgres_databases")
    return EmptyStore(request.getfixturevalue("postgres_url"), databases.server)


async def appends(cluster: Cluster, history: History, name: str, luck: random.Random, over: asyncio.Event) -> None:
    """One client's workers: each appends, reads, and repeats under a command ID, until it is over."""
    number = 0

    async def worker() -> None:
        nonlocal number
        while not over.is_set():
            kind, id = luck.choice(ENTITIES)
            entity, ref = f"{kind.__name__}/{id}", cluster.entity(kind, id)
            number += 1
            token, what = f"{name}.{number}", luck.random()
            if what < 0.1:
                await history.read(entity, ref)
            elif what < 0.2:
                await history.append_until_known(entity, ref, token)
            elif what < 0.3:
                await history.append(entity, ref, token, name, "append_slowly", 0.02)
            else:
                await history.append(entity, ref, token, name, luck.choice(("append", "append_if_even")))

    await asyncio.gather(*(worker() for _ in range(12)))


async def faults(
    cluster: PlainCluster, luck: random.Random, seconds: float, server: PostgresServer | None
) -> dict[str, int]:
    """SIGKILL and SIGSTOP hosts in turn, replacing what is gone, and SIGKILL the server; returns how often each of them
    bit."""
    bit = {"killed": 0, "stopped": 0, "succeeded": 0, "server killed": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end or bit["killed"] + bit["succeeded"] < 2:  # a busy machine starts hosts slowly
        await asyncio.sleep(luck.uniform(0.3, 1.5))
        if server is not None and luck.random() < 0.3:
            server.kill()
            await asyncio.to_thread(server.restart)
            bit["server killed"] += 1
        victim = luck.choice([host for host in cluster.hosts if host.alive])
        if luck.random() < 0.6:
            victim.kill()
            await victim.process.wait()
            bit["killed"] += 1
        else:
            victim.kill(signal.SIGSTOP)
            bit["stopped"] += 1
            bit["succeeded"] += await is_succeeded(cluster, victim, cluster.settings.lease_s * luck.uniform(0.3, 3))
        while sum(host.alive for host in cluster.hosts) < 2:
            await cluster.start_host()
    return bit


async def is_succeeded(cluster: PlainCluster, victim: HostProcess, seconds: float) -> bool:
    """A host that is stopped for so long: do others take its shards over? Then it ends: on SQLite by its successor while
    it stands still, else by itself when it goes on and finds itself fenced."""
    try:
        async with asyncio.timeout(seconds):
            await victim.process.wait()
    except TimeoutError:
        states = {host.incarnation: host.state for host in await hosts_of(cluster)}
        victim.kill(signal.SIGCONT)
        if states.get(victim.incarnation) is HostState.LIVE:  # a row that is sealed may be left out
            return False
        async with asyncio.timeout(PATIENCE_S):
            assert await victim.process.wait() != 0
    return True


async def hosts_of(cluster: PlainCluster) -> list[HostRow]:
    """Asked again where the server was killed: connections from before lead nowhere."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await cluster.store.hosts()


async def run(store: EmptyStore, folder: Path, seconds: float) -> dict[str, int]:
    luck = Luck()
    history, over = History(), asyncio.Event()
    async with (
        plain_cluster("ledger:app", "ledger", folder, app_dir=HELPERS, hosts=2, store=store.url) as cluster,
        cluster.connect(discover=True) as one,
        cluster.connect(discover=True) as other,
    ):
        work = [
            asyncio.ensure_future(appends(one, history, "X", random.Random(luck.random()), over)),
            asyncio.ensure_future(appends(other, history, "Y", random.Random(luck.random()), over)),
        ]
        bit = await faults(cluster, luck, seconds, store.server)
        over.set()
        await asyncio.gather(*work)
        final = {f"{kind.__name__}/{id}": await one.entity(kind, id).read() for kind, id in ENTITIES}
    history.check(final)
    bit["acknowledged"] = len(history.acknowledged)
    bit["unknown"] = len(history.unknown)
    print(bit, luck)  # noqa: T201 - the soak run's figures
    return bit


@pytest.mark.timeout(300)
async def test_killed_and_stopped_hosts_lose_double_and_reorder_nothing(store: EmptyStore, tmp_path: Path) -> None:
    """J12, J16, M01, M02, M03, M19, S03, S05, R01, PR16, PR18: real processes, a real store, SIGKILL and SIGSTOP under load.
    A stopped host is killed by its successor on SQLite; on PostgreSQL it is fenced, and the server is killed as well."""
    bit = await run(store, tmp_path, seconds=5)
    assert bit["killed"] + bit["succeeded"] > 1
    assert bit["acknowledged"] > 300


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_hosts_are_killed_and_stopped_for_minutes(store: EmptyStore, tmp_path: Path) -> None:
    """The same for two minutes, on each store."""
    bit = await run(store, tmp_path, seconds=float(os.environ.get("SOAK_S", "120")))
    assert min(bit["killed"], bit["succeeded"]) > 2
    assert bit["killed"] + bit["succeeded"] > 10
    assert store.server is None or bit["server killed"] > 2
    assert bit["acknowledged"] > 5_000
