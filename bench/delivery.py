"""The figures of work that outlives its host: tells, messages between entities, a backlog left by a killed host."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from counters import Counter, Gated, Purse, app
from figures import Bound, Figure, against, percentile
from load import Load, drive
from plain_cluster import PlainCluster, plain_cluster
from topic import ENTITIES, HERE, IDS, IN_FLIGHT, WARM_UP_S, Ask, Pace, Say, additions, one_host

from atoll.cluster.api import Cluster

BACKLOG = 100_000
WORKED_OFF_TIMEOUT_S = 300.0
LOOK_S = 0.02
"""How exactly the end of a backlog is seen."""


async def tells(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Tells that run at once beside asks of the same command, and tells that wait behind a turn."""
    plain: PlainCluster
    async with one_host(folder / "tells") as plain, plain.connect() as cluster:
        asks = additions(cluster, Counter, ENTITIES)
        tell: list[Ask] = [partial(cluster.entity(Counter, id).add.tell, 1) for id in IDS]
        for commands in (asks, tell):
            await drive(commands, IN_FLIGHT, WARM_UP_S)
        say("asks, then tells that run at once")
        asked = await drive(asks, IN_FLIGHT, pace.seconds)
        told = await drive(tell, IN_FLIGHT, pace.seconds)
        lone = await drive(tell, 1, pace.seconds)
        say("tells that wait for their turn")
        gate = folder / "gate"
        waiting: list[Ask] = [partial(cluster.entity(Gated, id).work.tell, str(gate)) for id in IDS]
        behind = await drive(waiting, IN_FLIGHT, min(pace.seconds, 2.0))  # they are all kept
        gate.touch()
    reference = Figure(name="the same as asks", value=round(asked.per_second), unit="1/s")
    at_once = Figure(name="tells that run at once, 512 in flight", value=round(told.per_second), unit="1/s")
    return [
        against(at_once, reference),
        reference,
        Figure(
            name="cost of a tell that runs at once / of an ask",
            value=round(asked.per_second / told.per_second, 3),
            unit="",
            kind=Bound.AIM_BELOW,
            limit=1.2,
        ),
        *_latencies("tells that run at once, 512 in flight", told),
        *_latencies("lone tell", lone),
        Figure(name="tells accepted behind a turn, 512 in flight", value=round(behind.per_second), unit="1/s"),
        *_latencies("tells accepted behind a turn", behind),
    ]


def _latencies(name: str, load: Load) -> list[Figure]:
    taken = [1000 * latency for latency in load.latencies_s]
    return [
        Figure(name=f"{name}, p{percent}", value=round(percentile(taken, percent), 3), unit="ms")
        for percent in (50, 99)
    ]


async def transfers(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Money from purse to purse: a debit that sends the credit as a message, until the last credit has run."""
    plain: PlainCluster
    async with one_host(folder / "transfers") as plain, plain.connect() as cluster:
        pay: list[Ask] = [
            partial(cluster.entity(Purse, id).pay, IDS[(number * 7 + 1) % ENTITIES], 1) for number, id in enumerate(IDS)
        ]
        warm_up = await drive(pay, IN_FLIGHT, WARM_UP_S)
        await _credited(cluster, warm_up.asks)
        say(f"transfers for {pace.seconds:g} s")
        began = time.perf_counter()
        load = await drive(pay, IN_FLIGHT, pace.seconds)
        await _credited(cluster, warm_up.asks + load.asks)
        seconds = time.perf_counter() - began
    return [
        Figure(name="transfers between 1,000 accounts, credited", value=round(load.asks / seconds), unit="1/s"),
        *_latencies("transfers, the debit's answer", load),
    ]


async def _credited(cluster: Cluster, payments: int) -> None:
    """Wait until every payment has arrived."""
    await _until_sum([cluster.entity(Purse, id).credits for id in IDS], payments)


async def _until_sum(queries: Sequence[Callable[[], Awaitable[int]]], wanted: int) -> None:
    """Wait until the answers add up to `wanted`; raises when they come to more."""
    async with asyncio.timeout(WORKED_OFF_TIMEOUT_S):
        while (found := sum(await asyncio.gather(*(query() for query in queries)))) < wanted:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)  # only asking tells
    assert found == wanted, f"{found} arrived of {wanted}"


async def resume(_pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """100,000 accepted commands of 1,000 entities wait in the store when their host is killed."""
    gate = folder / "gate"
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / "resume", app_dir=HERE) as plain,
        plain.connect(discover=True) as cluster,
    ):
        say(f"accepting {BACKLOG:,} commands")
        tell = [partial(cluster.entity(Gated, id).work.tell, str(gate)) for id in IDS]
        for _ in range(BACKLOG // ENTITIES):
            await asyncio.gather(*(each() for each in tell))
        await plain.start_host()
        say("killing their host")
        gate.touch()
        killed = time.perf_counter()
        plain.hosts[0].kill(signal.SIGKILL)
        first = cluster.entity(Gated, IDS[0]).done.using(timeout=WORKED_OFF_TIMEOUT_S)
        await first()
        answered = time.perf_counter() - killed
        queries = [cluster.entity(Gated, id).done.using(timeout=WORKED_OFF_TIMEOUT_S) for id in IDS]
        await _until_sum(queries, BACKLOG)
        seconds = time.perf_counter() - killed
    return [
        Figure(name=f"{BACKLOG:,} pending commands run after a kill", value=round(seconds, 2), unit="s"),
        Figure(name="of them per second", value=round(BACKLOG / seconds), unit="1/s"),
        Figure(name="the first entity answers after", value=round(answered, 2), unit="s"),
    ]
