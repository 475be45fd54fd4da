"""What idle entities cost in a host's memory, and what is left of it when they have left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from counters import Pair, app
from figures import Bound, Figure
from plain_cluster import PlainCluster, plain_cluster
from topic import HERE, IN_FLIGHT, Pace, Say

from atoll.cluster.api import Cluster

ENTITIES, ENTITIES_QUICK = 1_000_000, 50_000
AIM_MB_PER_MILLION = 600
IDLE_S, IDLE_QUICK_S = 300.0, 20.0
"""Until an entity leaves memory: longer than it takes to make them all."""
STEADY_S = 15.0
"""Three checkpoints: memory that did not change for so long will not."""
STEADY_BYTES = 4 << 20
LOOK_S = 1.0
LEAVE_TIMEOUT_S = 600.0


async def memory(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """A host with very many entities of two fields."""
    entities, idle_s = (ENTITIES_QUICK, IDLE_QUICK_S) if pace.quick else (ENTITIES, IDLE_S)
    settings = {"active_entities_max": 2 * entities, "passivate_idle_s": idle_s}
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "memory", app_dir=HERE, settings=settings) as plain,
        plain.connect() as cluster,
    ):
        process = psutil.Process(plain.hosts[0].process.pid)

        def rss() -> int:
            used: int = process.memory_info().rss
            return used

        empty = rss()
        say(f"{entities} entities are made")
        began = time.perf_counter()
        await asyncio.gather(*(make(cluster, part, entities) for part in range(IN_FLIGHT)))
        made_s = time.perf_counter() - began
        if made_s > idle_s:
            raise RuntimeError(f"the first left before the last came, after {made_s:.0f} s: this machine is too busy")
        say("they idle, until the checkpoints are over")
        idle = await steady(rss, idle_s - made_s)
        say(f"they leave memory after {idle_s:g} s")
        await asyncio.sleep(max(0.0, began + made_s + idle_s - time.perf_counter()))
        left = await steady(rss, LEAVE_TIMEOUT_S)
    held_mb, left_mb = (idle - empty) / 1e6, (left - empty) / 1e6
    return [
        Figure(
            name=f"{entities:,} idle entities of two fields",
            value=round(held_mb),
            unit="MB",
            kind=Bound.AIM_BELOW,
            limit=AIM_MB_PER_MILLION * entities / 1_000_000,
        ),
        Figure(name="one of them", value=round(1e6 * held_mb / entities), unit="bytes"),
        Figure(name="the same after passivation, above the empty host", value=round(left_mb), unit="MB"),
        Figure(name="entities made", value=round(entities / made_s), unit="1/s"),
    ]


async def make(cluster: Cluster, part: int, entities: int) -> None:
    for number in range(part, entities, IN_FLIGHT):
        await cluster.entity(Pair, f"pair-{number}").put(f"name of {number}", number)


async def steady(rss: Callable[[], int], timeout_s: float) -> int:
    """What it is when it has not changed for a while, or at the end of the time."""
    over = time.perf_counter() + timeout_s
    reference, since = rss(), time.perf_counter()
    while (now := time.perf_counter()) < over and now - since < STEADY_S:
        await asyncio.sleep(LOOK_S)
        if abs(rss() - reference) > STEADY_BYTES:
            reference, since = rss(), time.perf_counter()
    return rss()
