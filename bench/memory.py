"""What idle entities cost in a host's memory, what others notice when they leave it, and a scan over cold ones.

Two hosts' lives over one store: one that fills and empties again, and one with a bound far below what it is asked
for. Memory is what the kernel says that the process has (RSS), all included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from counters import Collector, Counter, Pair, app
from figures import Bound, Figure, percentile
from load import Load, drive
from plain_cluster import PlainCluster, plain_cluster
from topic import HERE, IN_FLIGHT, Pace, Say, additions

from atoll.cluster.api import Cluster

ENTITIES, ENTITIES_QUICK = 1_000_000, 50_000
AIM_BYTES = 600
"""Of one at rest, when there are a million: with a few, what the work itself left behind is most of it."""
IDLE_S, IDLE_QUICK_S = 420.0, 60.0
"""Until an entity leaves memory: longer than it takes to make them all, and to look at them."""
LATE = 9 / 8
"""Of the idle time: by then whoever rests has left (sharding/resting.py)."""
ACTIVE_SHARE = 20
"""The scan goes over so many times what may be in memory."""
OTHERS = 64
"""Asks in flight of those that work on while others idle or leave."""
STEADY_S = 15.0
"""Three checkpoints: memory that did not change for so long will not."""
STEADY_BYTES = 4 << 20
LOOK_S = 0.5
STEADY_TIMEOUT_S = 60.0


class Host:
    """The process of the only host, as the kernel sees it."""

    def __init__(self, plain: PlainCluster) -> None:
        self._process = psutil.Process(plain.hosts[0].process.pid)

    def rss(self) -> int:
        used: int = self._process.memory_info().rss
        return used

    async def steady(self) -> int:
        """Its memory when that has not changed for a while, or at the end of the time."""
        over = time.perf_counter() + STEADY_TIMEOUT_S
        reference, since = self.rss(), time.perf_counter()
        while (now := time.perf_counter()) < over and now - since < STEADY_S:
            await asyncio.sleep(LOOK_S)
            if abs(self.rss() - reference) > STEADY_BYTES:
                reference, since = self.rss(), time.perf_counter()
        return self.rss()

    async def highest_during(self, work: Awaitable[object]) -> int:
        """The most that it took while `work` went on."""
        highest, task = self.rss(), asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            highest = max(highest, self.rss())
        await task
        return highest


async def memory(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """A host with very many entities of two fields."""
    entities = ENTITIES_QUICK if pace.quick else ENTITIES
    store = f"sqlite:{folder / 'memory'}"
    figures = await idle_and_gone(folder / "idle", store, entities, IDLE_QUICK_S if pace.quick else IDLE_S, say)
    return figures + await scan(folder / "scan", store, entities, say)


# ---- one that fills, and empties -----------------------------------------------------------------------------------


async def idle_and_gone(folder: Path, store: str, entities: int, idle_s: float, say: Say) -> list[Figure]:
    settings = {"active_entities_max": 2 * entities, "passivate_idle_s": idle_s}
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder, app_dir=HERE, settings=settings, store=store) as plain,
        plain.connect() as cluster,
    ):
        host = Host(plain)
        empty = host.rss()
        say(f"{entities} entities are made")
        began = time.perf_counter()
        await everyone(entities, lambda number: pair(cluster, number).put(f"name of {number}", number))
        made_s = time.perf_counter() - began
        say("they idle, until the checkpoints are over")
        idle = await host.steady()
        collecting = await cluster.entity(Collector, "collector").collect()
        meanwhile = await others(cluster, STEADY_S)
        spent_s = time.perf_counter() - began
        if spent_s > idle_s:
            raise RuntimeError(
                f"the first left before the last was looked at, after {spent_s:.0f} s: too busy a machine"
            )
        await asyncio.sleep(idle_s - spent_s)
        say("they leave memory, as they came")
        leaving = await others(cluster, made_s + idle_s * (LATE - 1))
        left = await host.steady()
    return [
        in_mb("an empty host", empty),
        in_mb(f"{entities:,} idle entities of two fields, above that", idle - empty),
        Figure(
            name="one of them",
            value=round((idle - empty) / entities),
            unit="bytes",
            kind=Bound.AIM_BELOW if entities >= ENTITIES else None,
            limit=AIM_BYTES,
        ),
        in_mb("after passivation, above the empty host", left - empty),
        Figure(name="entities made", value=round(entities / made_s), unit="1/s"),
        Figure(name="a full garbage collection beside them", value=round(1000 * collecting, 1), unit="ms"),
        *told(f"asks of others, {OTHERS} in flight, beside them", meanwhile),
        *told("the same while they leave", leaving),
    ]


def pair(cluster: Cluster, number: int) -> Pair:
    return cluster.entity(Pair, f"account-{number:06}")


async def everyone(entities: int, ask: Callable[[int], Awaitable[object]]) -> None:
    """Ask each of them once, many at a time."""

    async def part(first: int) -> None:
        for number in range(first, entities, IN_FLIGHT):
            await ask(number)

    await asyncio.gather(*(part(first) for first in range(IN_FLIGHT)))


async def others(cluster: Cluster, seconds: float) -> Load:
    return await drive(additions(cluster, Counter, OTHERS), OTHERS, seconds, sample_every=1)


def told(name: str, load: Load) -> list[Figure]:
    return [
        Figure(name=name, value=round(load.per_second), unit="1/s"),
        Figure(name=f"{name}, p99", value=round(1000 * percentile(load.latencies_s, 99), 1), unit="ms"),
        Figure(name=f"{name}, slowest", value=round(1000 * max(load.latencies_s), 1), unit="ms"),
    ]


def in_mb(name: str, size: float) -> Figure:
    return Figure(name=name, value=round(size / 1e6), unit="MB")


# ---- one with a bound ----------------------------------------------------------------------------------------------


async def scan(folder: Path, store: str, entities: int, say: Say) -> list[Figure]:
    """Each of the entities is asked once, by a query, and nearly all of them leave again."""
    bound = entities // ACTIVE_SHARE
    plain: PlainCluster
    async with (
        plain_cluster(
            "counters:app", app.name, folder, app_dir=HERE, settings={"active_entities_max": bound}, store=store
        ) as plain,
        plain.connect() as cluster,
    ):
        host = Host(plain)
        say(f"{entities} cold entities are read, {bound} may be in memory")
        began = time.perf_counter()
        first = entities // 5
        full = await host.highest_during(everyone(first, lambda number: pair(cluster, number).read()))
        most = await host.highest_during(
            everyone(entities - first, lambda number: pair(cluster, first + number).read())
        )
        seconds = time.perf_counter() - began
    return [
        Figure(name=f"cold entities read, {bound:,} in memory", value=round(entities / seconds), unit="1/s"),
        in_mb(f"most memory in the first {first:,} of them", full),
        in_mb("the last of them take more by", most - full),
    ]
