"""Real host processes over one store, killed and stopped at random under load; PostgreSQL's server, too."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest
from ledger import History, Journal, List
from luck import Luck
from plain_cluster import PlainCluster, plain_cluster
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer

from atoll.cluster.api import Cluster

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ENTITIES = [(kind, f"e{i}") for kind in (List, Journal) for i in range(12)]


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
    bit = {"killed": 0, "stopped": 0, "ended while stopped": 0, "server killed": 0}
    end = time.monotonic() + seconds
    while (
        time.monotonic() < end or bit["killed"] + bit["ended while stopped"] < 2
    ):  # a busy machine starts hosts slowly
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
            # longer than its lease: its shards go elsewhere, and the successor ends the stopped process first
            try:
                async with asyncio.timeout(cluster.settings.lease_s * luck.uniform(0.3, 3)):
                    await victim.process.wait()
                bit["ended while stopped"] += 1
            except TimeoutError:
                victim.kill(signal.SIGCONT)
        while sum(host.alive for host in cluster.hosts) < 2:
            await cluster.start_host()
    return bit


async def run(
    folder: Path, seconds: float, store: str | None = None, server: PostgresServer | None = None
) -> dict[str, int]:
    luck = Luck()
    history, over = History(), asyncio.Event()
    async with (
        plain_cluster("ledger:app", "ledger", folder, app_dir=HELPERS, hosts=2, store=store) as cluster,
        cluster.connect(discover=True) as one,
        cluster.connect(discover=True) as other,
    ):
        work = [
            asyncio.ensure_future(appends(one, history, "X", random.Random(luck.random()), over)),
            asyncio.ensure_future(appends(other, history, "Y", random.Random(luck.random()), over)),
        ]
        bit = await faults(cluster, luck, seconds, server)
        over.set()
        await asyncio.gather(*work)
        final = {f"{kind.__name__}/{id}": await one.entity(kind, id).read() for kind, id in ENTITIES}
    history.check(final)
    bit["acknowledged"] = len(history.acknowledged)
    bit["unknown"] = len(history.unknown)
    print(bit, luck)  # noqa: T201 - the soak run's figures
    return bit


@pytest.mark.timeout(300)
async def test_killed_and_stopped_hosts_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    """J12, J16, M01, M02, M03, M19, S03, PR16, PR18: real processes, a real store, SIGKILL and SIGSTOP under load."""
    bit = await run(tmp_path, seconds=8)
    assert bit["killed"] + bit["ended while stopped"] > 1
    assert bit["acknowledged"] > 500


@pytest.mark.timeout(300)
async def test_killed_hosts_and_a_killed_server_lose_double_and_reorder_nothing(
    tmp_path: Path, postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """J12, J16, M01, M02, M03, M19, S03, S05, R01, PR16: the same over PostgreSQL, where a stopped host is not killed by
    its successor but fenced, and where the server is killed and started again meanwhile."""
    bit = await run(tmp_path, 8, postgres_url, postgres_databases.server)
    assert bit["killed"] > 1
    assert bit["acknowledged"] > 300


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_hosts_and_the_server_are_killed_for_minutes(
    tmp_path: Path, postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """The same for two minutes."""
    bit = await run(tmp_path, float(os.environ.get("SOAK_S", "120")), postgres_url, postgres_databases.server)
    assert min(bit["killed"], bit["stopped"], bit["server killed"]) > 5
    assert bit["acknowledged"] > 5_000


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_hosts_are_killed_and_stopped_for_minutes(tmp_path: Path) -> None:
    """The same for two minutes."""
    bit = await run(tmp_path, seconds=float(os.environ.get("SOAK_S", "120")))
    assert bit["killed"] > 10
    assert bit["ended while stopped"] > 2
    assert bit["acknowledged"] > 10_000
