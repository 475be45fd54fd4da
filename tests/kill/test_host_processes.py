"""Real host processes over one store, killed and stopped at random under load."""

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
from plain_cluster import HostProcess, PlainCluster, plain_cluster

from atoll.cluster.api import Cluster
from atoll.persistence.spi import HostState

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
ENTITIES = [(kind, f"e{i}") for kind in (List, Journal) for i in range(12)]
PATIENCE_S = 30.0


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'store'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


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


async def faults(cluster: PlainCluster, luck: random.Random, seconds: float) -> dict[str, int]:
    """SIGKILL and SIGSTOP hosts in turn, replacing what is gone; returns how often each of them bit."""
    bit = {"killed": 0, "stopped": 0, "succeeded": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end or bit["killed"] + bit["succeeded"] < 2:  # a busy machine starts hosts slowly
        await asyncio.sleep(luck.uniform(0.3, 1.5))
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
        states = {host.incarnation: host.state for host in await cluster.store.hosts()}
        victim.kill(signal.SIGCONT)
        if states.get(victim.incarnation) is HostState.LIVE:  # a row that is sealed may be left out
            return False
        async with asyncio.timeout(PATIENCE_S):
            assert await victim.process.wait() != 0
    return True


async def run(store: str, folder: Path, seconds: float) -> dict[str, int]:
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
        bit = await faults(cluster, luck, seconds)
        over.set()
        await asyncio.gather(*work)
        final = {f"{kind.__name__}/{id}": await one.entity(kind, id).read() for kind, id in ENTITIES}
    history.check(final)
    bit["acknowledged"] = len(history.acknowledged)
    bit["unknown"] = len(history.unknown)
    print(bit, luck)  # noqa: T201 - the soak run's figures
    return bit


@pytest.mark.timeout(300)
async def test_killed_and_stopped_hosts_lose_double_and_reorder_nothing(store: str, tmp_path: Path) -> None:
    """J12, J16, M01, M02, M03, M19, S03, PR16, PR18: real processes, a real store, SIGKILL and SIGSTOP under load."""
    bit = await run(store, tmp_path, seconds=8)
    assert bit["killed"] + bit["succeeded"] > 1
    assert bit["acknowledged"] > 500


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_hosts_are_killed_and_stopped_for_minutes(store: str, tmp_path: Path) -> None:
    """The same for two minutes, on each store."""
    bit = await run(store, tmp_path, seconds=float(os.environ.get("SOAK_S", "120")))
    assert bit["killed"] > 10
    assert bit["succeeded"] > 2
    assert bit["acknowledged"] > 10_000
