"""The figures of a cluster that changes while it works: what its callers notice of it.

A gap is the longest time that one of several steady callers waited for an answer, from before the change until each of
them has been answered again after it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter as Count
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Self

from counters import Counter, app
from figures import Bound, Figure, against, in_seconds, percentile
from plain_cluster import PlainCluster, plain_cluster
from topic import HERE, IDS, Pace, Say

from atoll.cluster.api import Cluster
from atoll.persistence.spi import Assignment, ShardState
from atoll.sharding.hashing import shard_of

CALLERS = 32
SENDERS = 8
"""Callers of the one shard that is handed over."""
TIMEOUT_S = 60.0
LOOK_S = 0.01
"""How exactly the end of a change is seen."""
QUIET_S = 0.3
"""How long a handoff takes until it is seen to be over, nearly all of it before the owner looks at the store."""
RATE_S = 2.0
"""How long the rate before a join is measured."""
DIP_S = 1.0
"""The least time over which the rate after a join is: shorter ones are noise."""
ALONE_S = 0.5
"""How long there is no coordinator."""
FAIR = 0.9
"""The part of its share by which a host has its fair share: a shard more or less is not worth a move."""


class Callers:
    """Steady load on some entities, dealt out to the callers: each sends its next ask when it has its answer."""

    def __init__(self, cluster: Cluster, ids: list[str], callers: int = CALLERS) -> None:
        self._ids = [ids[first::callers] for first in range(callers)]
        self._cluster = cluster
        self._tasks: list[asyncio.Task[None]] = []
        self._answers = [0] * callers
        self._longest_s = 0.0
        self.failed = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call(caller)) for caller in range(len(self._ids))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def answers(self) -> int:
        return sum(self._answers)

    async def longest_wait_s(self, change: Awaitable[object]) -> float:
        """Make a change, and let everybody have an answer after it. How long did a caller wait at most meanwhile?"""
        self._longest_s = 0.0
        await change
        wanted = [answers + 2 for answers in self._answers]  # the first may have been under way already
        async with asyncio.timeout(TIMEOUT_S):
            while any(  # noqa: ASYNC110 - an event per answer would cost the callers
                answers < least for answers, least in zip(self._answers, wanted, strict=True)
            ):
                await asyncio.sleep(LOOK_S)
        return self._longest_s

    async def _call(self, caller: int) -> None:
        asks = [self._cluster.entity(Counter, id).add.using(timeout=TIMEOUT_S) for id in self._ids[caller]]
        while True:
            for ask in asks:
                sent = time.perf_counter()
                try:
                    await ask(1)
                except Exception:  # noqa: BLE001 - whatever it is, a caller noticed
                    self.failed += 1
                self._answers[caller] += 1
                self._longest_s = max(self._longest_s, time.perf_counter() - sent)


# ---- what is waited for: the store is asked -------------------------------------------------------------------------


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(LOOK_S)


async def shared_by(plain: PlainCluster, hosts: int) -> bool:
    """Every shard is served, none is on its way, and so many hosts have their fair share."""
    rows = await plain.store.shards()
    if any(row.state is not ShardState.OWNED or row.target is not None for row in rows):
        return False
    shares = Count(row.owner for row in rows)
    return len(shares) == hosts and min(shares.values()) >= FAIR * len(rows) / hosts


async def empty(plain: PlainCluster, host: int) -> bool:
    """Every shard is served, and by others."""
    return all(row.state is ShardState.OWNED and row.owner != host for row in await plain.store.shards())


async def is_alone(plain: PlainCluster, shard: int) -> bool:
    """Every shard is served, and no other one by the host of this one."""
    rows = await plain.store.shards()
    served = all(row.state is ShardState.OWNED for row in rows)
    return served and sum(row.owner == rows[shard].owner for row in rows) == 1


async def moving(plain: PlainCluster) -> bool:
    """Some shards are on their way."""
    return any(row.target is not None or row.state is not ShardState.OWNED for row in await plain.store.shards())


async def serves(plain: PlainCluster, host: int, shard: int) -> bool:
    row = (await plain.store.shards())[shard]
    return row.state is ShardState.OWNED and row.owner == host


# ---- planned ---------------------------------------------------------------------------------------------------------


async def handoff(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """One shard moves from host to host and back, under load. There is no coordinator, which might move others."""
    gaps, otherwise = [], []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "handoff", app_dir=HERE, hosts=2) as plain,
        plain.connect() as cluster,
    ):
        await until(partial(shared_by, plain, 2))
        await plain.stop_coordinator()
        shards = plain.settings.shards
        shard = shard_of(IDS[0], shards)
        ids = list(islice((id for id in map(str, count()) if shard_of(id, shards) == shard), SENDERS))
        async with Callers(cluster, ids, SENDERS) as senders, Callers(cluster, IDS) as others:
            for number in range(2 * pace.runs):
                say(f"handoff {number + 1} of {2 * pace.runs}")
                otherwise.append(await senders.longest_wait_s(asyncio.sleep(QUIET_S)))
                gaps.append(await senders.longest_wait_s(_hand_over(plain, shard)))
            failed = senders.failed + others.failed
    reference = in_seconds("the same without a handoff", percentile(otherwise, 50))
    p50, worst = _gaps("planned handoff of one shard: gap", gaps, aim_p50_s=0.02, aim_s=0.2)
    return [_errors("planned handoff", failed), against(p50, reference), worst, reference]


async def _hand_over(plain: PlainCluster, shard: int) -> None:
    row = (await plain.store.shards())[shard]
    there = next(host.incarnation for host in plain.hosts if host.incarnation != row.owner)
    moved = await plain.store.move([Assignment(shard, row.epoch, there)])
    assert moved, row
    await until(partial(serves, plain, there, shard))


async def drain(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """One host of three is drained under load; then it may have shards again, and the next one is drained."""
    slowest, took = [], []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "drain", app_dir=HERE, hosts=3) as plain,
        plain.connect() as cluster,
        Callers(cluster, IDS) as callers,
    ):
        for number in range(pace.runs):
            say(f"drain {number + 1} of {pace.runs}")
            await until(partial(shared_by, plain, 3))
            host = plain.hosts[number % 3].incarnation
            began = time.perf_counter()
            slowest.append(await callers.longest_wait_s(_drain(plain, host)))
            took.append(time.perf_counter() - began)
            await plain.store.set_draining(host, False)
        failed = callers.failed
    name = f"drain of a host with {plain.settings.shards // 3} shards"
    return [
        _errors(name, failed),
        *_gaps(f"{name}: slowest command", slowest, aim_s=1.0),
        in_seconds(f"{name}, p50", percentile(took, 50)),
    ]


async def _drain(plain: PlainCluster, host: int) -> None:
    await plain.store.set_draining(host, True)
    await until(partial(empty, plain, host))


async def join(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """A third host joins two under load; then it is drained and ends, and the next one joins.

    Counted from when it serves (it is registered then, and has no shards), so that the start of its process, which
    takes the cores from everybody, is no part of it.
    """
    took, slowest, dips, after = [], [], [], []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "join", app_dir=HERE, hosts=2) as plain,
        plain.connect() as cluster,
        Callers(cluster, IDS) as callers,
    ):
        for number in range(pace.runs):
            say(f"join {number + 1} of {pace.runs}")
            await until(partial(shared_by, plain, 2))
            two = await _rate(callers, RATE_S)
            host = await plain.start_host()
            began, answers = time.perf_counter(), callers.answers
            slowest.append(await callers.longest_wait_s(until(partial(shared_by, plain, 3))))
            took.append(time.perf_counter() - began)
            await asyncio.sleep(max(0.0, DIP_S - took[-1]))
            meanwhile = (callers.answers - answers) / (time.perf_counter() - began)
            dips.append(max(0.0, 1 - meanwhile / two))
            after.append(await _rate(callers, RATE_S) / two)
            await _drain(plain, host.incarnation)
            host.kill()
        failed = callers.failed
    return [
        _errors("join of a third host", failed),
        in_seconds("join of a third host: its fair share after, p50", percentile(took, 50)),
        in_seconds(f"join of a third host: its fair share after, worst of {len(took)}", max(took)),
        Figure(
            name="join: throughput dip meanwhile, p50",
            value=round(percentile(dips, 50), 3),
            unit="",
            kind=Bound.AIM_BELOW,
            limit=0.2,
        ),
        Figure(name=f"join: throughput dip, worst of {len(dips)}", value=round(max(dips), 3), unit=""),
        Figure(
            name="throughput with three hosts on these cores / with two, p50",
            value=round(percentile(after, 50), 3),
            unit="",
        ),
        *_gaps("join: slowest command", slowest),
    ]


async def _rate(callers: Callers, seconds: float) -> float:
    began, answers = time.perf_counter(), callers.answers
    await asyncio.sleep(seconds)
    return (callers.answers - answers) / (time.perf_counter() - began)


# ---- not planned -----------------------------------------------------------------------------------------------------


async def stopped(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """SIGSTOP of one host of two: nothing proves its death, its lease decides."""
    gaps = []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "stopped", app_dir=HERE, hosts=2) as plain,
        plain.connect(discover=True) as cluster,
        Callers(cluster, IDS) as callers,
    ):
        for number in range(pace.runs):
            say(f"SIGSTOP {number + 1} of {pace.runs}")
            await until(partial(shared_by, plain, 2))
            host = next(host for host in plain.hosts if host.alive)
            host.kill(signal.SIGSTOP)
            gaps.append(await callers.longest_wait_s(until(partial(empty, plain, host.incarnation))))
            host.kill()
            await host.process.wait()
            await plain.start_host()
        failed = callers.failed
    return [
        _errors("SIGSTOP of a host", failed),
        *_gaps("SIGSTOP of a host: gap", gaps, aim_s=plain.settings.lease_s + 1.0),
    ]


async def coordinator(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """The coordinator ends in the middle of a drain, callers go on without one, and the next one finishes it."""
    slowest = []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "coordinator", app_dir=HERE, hosts=3) as plain,
        plain.connect() as cluster,
        Callers(cluster, IDS) as callers,
    ):
        for number in range(pace.runs):
            say(f"coordinator {number + 1} of {pace.runs}")
            await until(partial(shared_by, plain, 3))
            host = plain.hosts[number % 3].incarnation
            slowest.append(await callers.longest_wait_s(_drain_by_two(plain, host)))
            await plain.store.set_draining(host, False)
        failed = callers.failed
    name = "coordinator ended in the middle of a drain"
    return [_errors(name, failed), *_gaps(f"{name}: slowest command", slowest)]


async def _drain_by_two(plain: PlainCluster, host: int) -> None:
    await plain.store.set_draining(host, True)
    await until(partial(moving, plain))
    await plain.stop_coordinator()
    await asyncio.sleep(ALONE_S)
    assert not await empty(plain, host), "the coordinator had finished before it ended"
    plain.start_coordinator()
    await until(partial(empty, plain, host))


# ---- figures ---------------------------------------------------------------------------------------------------------


def _errors(name: str, failed: int) -> Figure:
    return Figure(name=f"{name}: commands failed", value=failed, unit="", kind=Bound.BELOW, limit=1)


def _gaps(name: str, gaps: list[float], *, aim_p50_s: float | None = None, aim_s: float | None = None) -> list[Figure]:
    return [
        in_seconds(f"{name}, p50 of {len(gaps)}", percentile(gaps, 50), aim_p50_s),
        in_seconds(f"{name}, worst of {len(gaps)}", max(gaps), aim_s),
    ]
