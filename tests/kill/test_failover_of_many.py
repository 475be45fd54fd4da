"""A host that dies with very many entities: whoever takes over brings in those that are called, and no others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from known import Known
from luck import Luck
from plain_cluster import PlainCluster, plain_cluster

from atoll.cluster.api import Cluster
from atoll.persistence.spi import ShardState

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
CALLERS = 256
LOOK_S = 0.02


async def served_by(cluster: PlainCluster, hosts: set[int]) -> Counter[int | None]:
    """How many shards each serves, once these serve all."""
    async with asyncio.timeout(60):
        while True:
            rows = await cluster.store.shards()
            if all(row.state is ShardState.OWNED and row.owner in hosts for row in rows):
                return Counter(row.owner for row in rows)
            await asyncio.sleep(LOOK_S)


@pytest.mark.timeout(180)
async def test_callers_of_a_host_that_dies_with_20000_entities_wait_and_do_not_fail(tmp_path: Path) -> None:
    """S18, S03: its shards go to both of the others, evenly; callers of any of its entities wait and are answered, each
    command once; and a host brings in an entity when it is called, not because it could be."""
    await run(tmp_path, 20_000)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_callers_of_a_host_that_dies_with_100000_entities_wait_and_do_not_fail(tmp_path: Path) -> None:
    """S18, S03: the same with as many as the row says."""
    await run(tmp_path, 100_000)


async def run(folder: Path, entities: int) -> None:
    luck = Luck()
    async with plain_cluster("known:app", "known", folder, app_dir=HELPERS, hosts=1) as cluster:
        (first,) = cluster.hosts
        async with cluster.connect(discover=True) as client:
            await asyncio.gather(*(fill(client, entities, part) for part in range(CALLERS)))
            await cluster.stop_coordinator()  # the others join, and get nothing while the first one lives
            others = [await cluster.start_host(), await cluster.start_host()]
            over, called = asyncio.Event(), Counter[int]()
            activated: dict[int, int] = defaultdict(int)

            async def caller() -> None:
                while not over.is_set():
                    number = luck.randrange(entities)
                    called[number] += 1
                    before = called[number]
                    n, pid, brought_in = await client.entity(Known, f"e{number}").add.using(timeout=60)()
                    assert 1 + before <= n <= 1 + called[number], "lost or doubled"
                    activated[pid] = max(activated[pid], brought_in)

            callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
            await asyncio.sleep(0)
            first.kill()
            killed = time.monotonic()
            cluster.start_coordinator()
            shares = await served_by(cluster, {host.incarnation for host in others})
            took_s = time.monotonic() - killed
            answered = sum(called.values())
            while sum(called.values()) < answered + 20 * CALLERS:  # noqa: ASYNC110 - the callers' own count
                await asyncio.sleep(LOOK_S)
            over.set()
            await asyncio.gather(*callers)
    assert max(shares.values()) - min(shares.values()) <= 1, shares
    brought_in = sum(activated[host.process.pid] for host in others)
    assert 0 < brought_in <= len(called), "entities were brought in that nobody called"
    print(f"{took_s:.2f} s until all shards were served, {brought_in} entities were brought in", luck)  # noqa: T201


async def fill(client: Cluster, entities: int, part: int) -> None:
    for number in range(part, entities, CALLERS):
        await client.entity(Known, f"e{number}").add()
