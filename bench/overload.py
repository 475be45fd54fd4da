"""The figures of too much load: what is answered, and how soon, below and far above what a host can do; and what a hot
entity costs its neighbours.

    python bench/overload.py

prints the first of them as a chart (ARCHITECTURE.md shows one).
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import uvloop
from counters import Busy, Counter, app
from figures import Bound, Figure, against, percentile
from moves import is_alone, shared_by, until
from open_load import OpenLoad
from own_time import OwnTime
from plain_cluster import PlainCluster, plain_cluster
from topic import ENTITIES, HERE, IDS, WARM_UP_S, Ask, Pace, Say, additions, one_host

from atoll.cluster.api import Cluster
from atoll.sharding.hashing import shard_of

WORK_S = 0.001
DEADLINE_S = 1.0
TIMES = (0.5, 1.0, 2.0, 10.0)
NEIGHBOURS_PER_S = 2000
"""Far below what a host can do: what is seen is the waiting for the hot one, not for the host."""
HOT = "hot"
HOT_PER_S, COLD_PER_S = 500.0, 500.0
"""With a handler of a millisecond, the hot one keeps its host busy for half of the time."""
ROUNDS = 3
SEED = 1
MIB = 1 << 20


async def capacity(cluster: Cluster, host: OwnTime, seconds: float) -> float:
    """Commands per second of the host's own time, from a few senders that wait for their answers."""
    over = time.perf_counter() + seconds
    before, done = host.seconds(), 0

    async def sender(number: int) -> None:
        nonlocal done
        while time.perf_counter() < over:
            await cluster.entity(Busy, IDS[number]).work(WORK_S)
            done += 1
            number = (number + 37) % ENTITIES

    await asyncio.gather(*(sender(number) for number in range(16)))
    return done / (host.seconds() - before)


def one_of(luck: random.Random, asks: Sequence[Ask]) -> Awaitable[object]:
    return luck.choice(asks)()


class Point:
    """What one load came to."""

    def __init__(self, times: float, load: OpenLoad, own_s: float, capacity: float, grown: int) -> None:
        self.times = times
        self.sent = load.sent
        self.goodput = len(load.latencies_s) / own_s / capacity
        """As a share of the capacity."""
        self.p99_s = percentile(load.latencies_s, 99)
        self.grown_mib = grown / MIB


async def points(pace: Pace, folder: Path, say: Say) -> tuple[float, list[Point]]:
    """The capacity, in commands per second, and what was met at each multiple of it."""
    luck = random.Random(SEED)
    found = []
    plain: PlainCluster
    async with one_host(folder / "overload") as plain, plain.connect() as cluster:
        pid = plain.hosts[0].process.pid
        host, process = OwnTime(pid), psutil.Process(pid)
        say("the capacity")
        await capacity(cluster, host, WARM_UP_S)
        possible = await capacity(cluster, host, pace.seconds)
        asks: Sequence[Ask] = [partial(cluster.entity(Busy, id).work.using(timeout=DEADLINE_S), WORK_S) for id in IDS]
        for times in TIMES:
            say(f"{times:g} times the capacity")
            load, before, rss = OpenLoad(luck), host.seconds(), process.memory_info().rss
            await load.run(partial(one_of, luck, asks), times * possible, pace.seconds)
            # What was sent in the last second may be answered in the next: the end is part of the time.
            grown = process.memory_info().rss - rss
            found.append(Point(times, load, host.seconds() - before, possible, grown))
    return possible, found


async def overload(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Goodput and p99 of what is answered, from half to ten times what a host can do."""
    possible, found = await points(pace, folder, say)
    figures = [Figure(name="capacity, a handler of 1 ms", value=round(possible), unit="1/s")]
    for point in found:
        name = f"at {point.times:g} x capacity"
        share = round(point.goodput, 2)
        must = point.times >= 1
        figures.append(
            Figure(
                name=f"{name}: goodput / capacity",
                value=share,
                unit="",
                kind=Bound.AT_LEAST if must else None,
                limit=0.8 if must else 0.0,
            )
        )
        figures.append(Figure(name=f"{name}: answered, p99", value=round(1000 * point.p99_s, 1), unit="ms"))
        figures.append(Figure(name=f"{name}: host's memory, more", value=round(point.grown_mib, 1), unit="MiB"))
    return figures


async def neighbours(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """p99 of cold entities, alone and beside one that takes half of the load: on one host, and on two, where the shard
    of the hot one is pinned in the end."""
    luck = random.Random(SEED)
    milliseconds = {}
    plain: PlainCluster
    async with one_host(folder / "neighbours") as plain, plain.connect() as cluster:
        cold, hot = additions(cluster, Counter, ENTITIES), partial(cluster.entity(Counter, HOT).add, 1)
        besides: dict[str, Sequence[Ask]] = {"beside as many cold ones": cold, "beside one hot entity": [hot]}
        await _p99_ms(luck, WARM_UP_S, cold, NEIGHBOURS_PER_S)
        for name, others in besides.items():
            say(f"cold entities {name}")
            milliseconds[name] = await _p99_ms(luck, pace.seconds, cold, NEIGHBOURS_PER_S, others, NEIGHBOURS_PER_S)
    figures = _p99s(milliseconds)
    return [*figures, *_p99s(await _neighbours_of_a_pin(pace, folder, say))]


async def _neighbours_of_a_pin(pace: Pace, folder: Path, say: Say) -> dict[str, float]:
    """The hot entity keeps its host busy for half of the time, a millisecond at a time. The cold ones on that host wait
    for it, until its shard is pinned and they are on the other one. Rounds of all three, so that what else runs on the
    machine meets each of them; the median of each."""
    luck = random.Random(SEED)
    found: dict[str, list[float]] = {}
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "pinned", app_dir=HERE, hosts=2) as plain,
        plain.connect() as cluster,
    ):
        cold, hot = additions(cluster, Counter, ENTITIES), partial(cluster.entity(Busy, HOT).work, WORK_S)
        shard = shard_of(HOT, plain.settings.shards)
        for number in range(ROUNDS):
            for name, pin, hot_per_s in (
                ("on two hosts, without a hot one", None, 0.0),
                ("on two hosts, beside a hot one", None, HOT_PER_S),
                ("on two hosts, its shard pinned", "", HOT_PER_S),
            ):
                say(f"cold entities {name}, round {number + 1} of {ROUNDS}")
                await plain.store.pin(shard, pin)
                await until(partial(shared_by, plain, 2) if pin is None else partial(is_alone, plain, shard))
                await _p99_ms(luck, WARM_UP_S, cold, COLD_PER_S, [hot], hot_per_s)
                p99 = await _p99_ms(luck, pace.seconds, cold, COLD_PER_S, [hot], hot_per_s)
                found.setdefault(name, []).append(p99)
    return {name: percentile(values, 50) for name, values in found.items()}


def _p99s(milliseconds: Mapping[str, float]) -> list[Figure]:
    """Each against the first."""
    first, *others = (
        Figure(name=f"cold entities {name}, p99", value=round(value, 2), unit="ms")
        for name, value in milliseconds.items()
    )
    return [first, *(against(figure, first) for figure in others)]


async def _p99_ms(
    luck: random.Random,
    seconds: float,
    cold: Sequence[Ask],
    cold_per_s: float,
    others: Sequence[Ask] = (),
    others_per_s: float = 0.0,
) -> float:
    """Of the cold ones, while the others get so many commands."""
    seen, beside = OpenLoad(luck), OpenLoad(luck)
    async with asyncio.TaskGroup() as group:
        group.create_task(seen.run(partial(one_of, luck, cold), cold_per_s, seconds))
        if others_per_s:
            group.create_task(beside.run(partial(one_of, luck, others), others_per_s, seconds))
    return 1000 * percentile(seen.latencies_s, 99)


def chart(possible: float, found: Sequence[Point]) -> str:
    lines = [f"capacity {possible:.0f}/s, deadline {DEADLINE_S:g} s", "", "load       goodput / capacity"]
    lines += [f"{p.times:4g} x     {p.goodput:4.2f} {'#' * round(40 * p.goodput)}" for p in found]
    lines += ["", "load       p99 of what is answered"]
    lines += [f"{p.times:4g} x  {1000 * p.p99_s:5.0f} ms {'#' * round(40 * p.p99_s / DEADLINE_S)}" for p in found]
    return "\n".join(lines)


async def main() -> None:
    logging.getLogger("atoll").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix=f"atoll-{app.name}-") as folder:
        print(chart(*await points(Pace(quick=False, long=False), Path(folder), lambda _: None)))


if __name__ == "__main__":
    uvloop.run(main())
