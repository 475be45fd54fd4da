"""A shard is pinned under load, and its host dies: real hosts, coordinators and clients on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from ledger import List
from sim_cluster import SETTINGS, SimCluster
from simulator.simulation import Simulation

import atoll
from atoll.persistence.spi import ShardState
from atoll.sharding.hashing import shard_of

SHARDS = 24
APP = atoll.App("pins", entities=[List], settings={**SETTINGS, "shards": SHARDS})
IDS = [next(f"e{n}" for n in range(10_000) if shard_of(f"e{n}", SHARDS) == shard) for shard in range(SHARDS)]
HOT = 5
SLOWEST_S = 1.0


class Load:
    """Appends to an entity of every shard, again and again, each checked by its reply."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self.appended = 0
        self.slowest_s = 0.0
        self._over = False

    async def run(self) -> None:
        client = await self._cluster.client("X")
        await asyncio.gather(*(self._append_to(client.entity(List, id)) for id in IDS))

    async def _append_to(self, ref: List) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while not self._over:
            began = loop.time()
            assert await ref.append(f"{number}") == number
            self.slowest_s = max(self.slowest_s, loop.time() - began)
            self.appended += 1
            number += 1
            await asyncio.sleep(0.02)
        assert await ref.read() == [f"{i}" for i in range(number)]

    def end(self) -> None:
        self._over = True

    def slowest_since_then_s(self) -> float:
        slowest, self.slowest_s = self.slowest_s, 0.0
        return slowest


async def owners(cluster: SimCluster) -> list[int | None]:
    return [row.owner if row.state is ShardState.OWNED else None for row in await cluster.store.shards()]


async def until(cluster: SimCluster, condition: Callable[[list[int | None]], bool]) -> list[int | None]:
    """The owners of all shards, once they are so, and nothing is wanted elsewhere."""
    async with asyncio.timeout(30):
        while True:
            found = await owners(cluster)
            moving = any(row.target is not None for row in await cluster.store.shards())
            if None not in found and not moving and condition(found):
                return found
            await asyncio.sleep(0.05)


def alone(found: list[int | None]) -> bool:
    return found.count(found[HOT]) == 1


def even(hosts: int) -> Callable[[list[int | None]], bool]:
    return lambda found: sorted(Counter(found).values()) == [SHARDS // hosts] * hosts


async def story(cluster: SimCluster) -> None:
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=3)
    for _ in range(3):
        await cluster.start_host()
    load = Load(cluster)
    loading = asyncio.ensure_future(load.run())
    before = await until(cluster, even(3))
    load.slowest_since_then_s()

    assert await cluster.store.pin(HOT, "")
    found = await until(cluster, alone)
    assert found[HOT] == before[HOT], "the shard itself moved for nothing"
    assert sorted(Counter(found).values()) == [1, 11, 12]
    assert load.slowest_since_then_s() < SLOWEST_S

    pinned_to = found[HOT]
    assert pinned_to is not None
    cluster.hosts[pinned_to].kill()
    found = await until(cluster, lambda found: pinned_to not in found and alone(found))
    assert load.slowest_since_then_s() < SLOWEST_S, "a pinned shard waits for nobody"

    others = next(owner for owner in found if owner != found[HOT])
    assert others is not None
    cluster.hosts[others].kill()
    await until(cluster, even(1))

    cluster.coordinator.kill()
    cluster.start_coordinator()
    await cluster.start_host()
    found = await until(cluster, alone)
    assert sorted(Counter(found).values()) == [1, SHARDS - 1]

    load.slowest_since_then_s()
    assert await cluster.store.pin(HOT, None)
    await until(cluster, even(2))
    assert load.slowest_since_then_s() < SLOWEST_S
    load.end()
    await loading
    assert load.appended > 20 * SHARDS


@pytest.mark.parametrize("seed", range(3))
def test_a_pinned_shard_is_alone_and_its_host_dies_under_load(seed: int) -> None:
    """S03, S07, S11: everything else leaves its host, no append fails, is lost or takes a second. The host dies: it is
    served at once, and alone again. One host is left: all are served there; another one joins, and it is alone again,
    with a coordinator that knows of the pin from the store only. Unpinned: even again."""
    with Simulation(f"pins-{seed}") as simulation:
        simulation.run(story(SimCluster(simulation, faults=0.0, app=APP)))
