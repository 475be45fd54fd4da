"""What is measured, one function per topic, each over the same cluster of one client process and one host process.

SQLite runs with `synchronous=FULL`: an ask is answered when its effects are on disk. References stand beside the
figures that lean on them: the same asks without durability, the store alone, the transport alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import echo
import msgspec
from activation import activation
from allocation import allocation
from counters import Blob, Counter, Tally, app
from delivery import resume, tells, transfers
from figures import Bound, Figure, against, in_seconds, percentile
from load import drive
from memory import memory
from moves import coordinator, drain, handoff, join, stopped
from overload import neighbours, overload
from plain_cluster import HostProcess, PlainCluster, plain_cluster
from stores import newest_batches, store_alone, stores
from stripes import stripes
from topic import ENTITIES, HERE, IDS, IN_FLIGHT, WARM_UP_S, Pace, Say, additions, one_host, postgres_stores

from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster, local
from atoll.sharding.hashing import shard_of

FAILOVER_TIMEOUT_S = 30.0
RAY_FAULTS = {"host killed": 0.3, "node killed": 1.0, "coordinator killed": 0.3}
"""Made by deploy/chaos.py, and the median gap that is aimed at, in seconds."""


# ---- throughput ----------------------------------------------------------------------------------------------------


async def throughput(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Durable asks beside memory, store and transport alone."""
    plain: PlainCluster
    async with one_host(folder / "throughput") as plain:
        async with plain.connect() as cluster:
            durable, memory = additions(cluster, Counter, ENTITIES), additions(cluster, Tally, ENTITIES)
            for asks in (durable, memory):
                await drive(asks, IN_FLIGHT, WARM_UP_S)
            say(f"durable asks for {pace.throughput_s:g} s")
            with_store = await drive(durable, IN_FLIGHT, pace.throughput_s)
            say("the same without durability")
            without = await drive(memory, IN_FLIGHT, pace.seconds)
        batches = await newest_batches(plain)
    say("the store alone")
    store_rate = await store_alone(f"sqlite:{folder / 'store-alone'}", batches, pace.seconds)
    say("the transport alone")
    echo_rate = await transport_alone(pace.seconds)
    in_memory = Figure(name="in-memory asks, 512 in flight", value=round(without.per_second), unit="asks/s")
    store = Figure(name="store alone, the same batches", value=round(store_rate), unit="records/s")
    transport = Figure(name="transport alone, 512 in flight", value=round(echo_rate), unit="requests/s")
    asked = Figure(
        name="durable asks, 512 in flight",
        value=round(with_store.per_second),
        unit="asks/s",
        kind=Bound.AT_LEAST,
        limit=30_000,
    )
    milliseconds = [1000 * latency for latency in with_store.latencies_s]
    return [
        against(asked, in_memory),
        Figure(
            name="durable asks / in-memory asks",
            value=round(asked.value / in_memory.value, 3),
            unit="",
            kind=Bound.AT_LEAST,
            limit=0.5,
        ),
        Figure(name="durable asks, 512 in flight, p50", value=round(percentile(milliseconds, 50), 2), unit="ms"),
        Figure(name="durable asks, 512 in flight, p99", value=round(percentile(milliseconds, 99), 2), unit="ms"),
        in_memory,
        against(store, asked),
        against(transport, asked),
    ]


async def transport_alone(seconds: float) -> float:
    """Requests per second to a server in another process that answers at once (echo.py)."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=echo.serve, args=(theirs,), daemon=True)
    process.start()
    try:
        address = await asyncio.to_thread(ours.recv)
        rate, _p50_us, _p99_us = await echo.measure(address, IN_FLIGHT, seconds, 8)
        return rate
    finally:
        process.kill()
        process.join()


# ---- latency, one entity, sizes ------------------------------------------------------------------------------------


async def lone(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """One ask at a time."""
    figures = []
    plain: PlainCluster
    async with one_host(folder / "lone") as plain, plain.connect() as cluster:
        for kind, name, limit in ((Counter, "lone durable ask", 0.6), (Tally, "lone in-memory ask", 0.2)):
            say(name)
            asks = additions(cluster, kind, 100)
            await drive(asks, 1, WARM_UP_S)
            taken = [1000 * latency for latency in (await drive(asks, 1, pace.seconds)).latencies_s]
            p50, p99 = round(percentile(taken, 50), 3), round(percentile(taken, 99), 3)
            figures.append(Figure(name=f"{name}, p50", value=p50, unit="ms", kind=Bound.AIM_BELOW, limit=limit))
            figures.append(Figure(name=f"{name}, p99", value=p99, unit="ms"))
    return figures


async def hot(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Every ask to the same entity."""
    say("one hot entity")
    plain: PlainCluster
    async with one_host(folder / "hot") as plain, plain.connect() as cluster:
        asks = additions(cluster, Counter, 1)
        await drive(asks, IN_FLIGHT, WARM_UP_S)
        rate = (await drive(asks, IN_FLIGHT, pace.seconds)).per_second
    return [
        Figure(
            name="durable asks of one hot entity, 512 in flight",
            value=round(rate),
            unit="asks/s",
            kind=Bound.AT_LEAST,
            limit=20_000,
        )
    ]


async def states(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """States of several sizes, each rewritten as a whole by every ask."""
    figures = []
    plain: PlainCluster
    async with one_host(folder / "states") as plain, plain.connect() as cluster:
        for size, label, entities, in_flight in (
            (100, "100 B", 100, 64),
            (10_000, "10 kB", 100, 64),
            (1_000_000, "1 MB", 16, 8),
        ):
            say(f"states of {label}")
            asks = [partial(cluster.entity(Blob, f"{label}-{n}").rewrite, size) for n in range(entities)]
            await drive(asks, in_flight, WARM_UP_S)
            rate = (await drive(asks, in_flight, pace.seconds)).per_second
            name = f"durable asks, states of {label}, {in_flight} in flight"
            figures.append(Figure(name=name, value=round(rate), unit="asks/s"))
            figures.append(Figure(name=f"{name}: state", value=round(rate * size / 1e6, 1), unit="MB/s"))
    return figures


# ---- failover ------------------------------------------------------------------------------------------------------


async def failover(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """From SIGKILL of a host to the first answer of one of its entities, two hosts alive before each kill."""
    figures = await _failover("failover", None, pace, folder, say)
    say("starting a PostgreSQL server")
    async with postgres_stores(app.name) as (store,):
        return figures + await _failover("failover on PostgreSQL", store, pace, folder, say)


async def _failover(name: str, store: str | None, pace: Pace, folder: Path, say: Say) -> list[Figure]:
    gaps = []
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder / name, app_dir=HERE, hosts=2, store=store) as plain,
        plain.connect(discover=True) as cluster,
    ):
        asks = additions(cluster, Counter, ENTITIES)
        for number in range(pace.runs):
            say(f"{name} {number + 1} of {pace.runs}")
            await drive(asks, 64, 0.5)  # something to recover
            victim, lost = next(
                (host, id) for host in plain.hosts if host.alive and (id := _entity_of(cluster, host)) is not None
            )
            ask = cluster.entity(Counter, lost).add.using(timeout=FAILOVER_TIMEOUT_S)
            killed = time.perf_counter()
            victim.kill(signal.SIGKILL)
            await ask(1)
            gaps.append(time.perf_counter() - killed)
            await victim.process.wait()
            await plain.start_host()
    return [
        Figure(name=f"{name}, p50 of {len(gaps)} kills", value=round(percentile(gaps, 50), 3), unit="s"),
        Figure(
            name=f"{name}, max of {len(gaps)} kills", value=round(max(gaps), 3), unit="s", kind=Bound.BELOW, limit=1.0
        ),
    ]


def _owner(cluster: Cluster, id: str) -> str:
    route = cluster.client.route(shard_of(id, Settings().shards))
    return "" if route is None else route.address


def _entity_of(cluster: Cluster, host: HostProcess) -> str | None:
    """An entity that lives there, as far as the client knows; None when it serves nothing."""
    return next((id for id in IDS if _owner(cluster, id) == host.address), None)


# ---- start, and the main job ----------------------------------------------------------------------------------------


async def start_up(_pace: Pace, _folder: Path, say: Say) -> list[Figure]:
    """From nothing to a usable cluster in this process: host, coordinator, client, every shard served."""
    say("atoll.local")
    took = []
    for _ in range(20):
        began = time.perf_counter()
        async with local(app):
            took.append(time.perf_counter() - began)
    milliseconds = round(percentile(took, 50) * 1000, 1)
    return [Figure(name="atoll.local up, p50", value=milliseconds, unit="ms", kind=Bound.BELOW, limit=50.0)]


async def main_job(_pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """The year of flights on three Ray nodes, one killed (examples/flights.py)."""
    say("the main job")
    report = folder / "flights.json"
    script = HERE.parent / "examples" / "flights.py"
    job = await asyncio.create_subprocess_exec(
        sys.executable, str(script), "--json", str(report), stdout=asyncio.subprocess.DEVNULL
    )
    if await job.wait():
        raise RuntimeError("the main job failed: run `make run` to see how")
    found = msgspec.json.decode(report.read_bytes())
    return [
        Figure(
            name="main job, set-up aside", value=round(found["seconds"], 1), unit="s", kind=Bound.BELOW, limit=120.0
        ),
        Figure(name="main job, durable commands", value=round(found["commands_per_s"]), unit="1/s"),
        Figure(
            name="main job, longest gap in the failover",
            value=round(found["failover_gap_ms"] / 1000, 3),
            unit="s",
            kind=Bound.BELOW,
            limit=1.0,
        ),
    ]


async def ray_faults(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Faults on three real Ray nodes under steady load, and what its callers notice (deploy/chaos.py)."""
    report = folder / "chaos.json"
    script = HERE.parent / "deploy" / "chaos.py"
    faults = [name for name in RAY_FAULTS for _ in range(pace.runs)]
    say(f"{len(faults)} faults on Ray nodes")
    chaos = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        *(argument for name in faults for argument in ("--fault", name)),
        "--json",
        str(report),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    if await chaos.wait() and not report.exists():
        raise RuntimeError('the faults could not be made: run `make chaos ARGS="--minutes 1"` to see why')
    found = msgspec.json.decode(report.read_bytes())
    wrong = sum(found[name] for name in ("lost", "doubled", "reordered", "stale_reads", "invented", "failed"))
    figures = [
        Figure(name="operations under faults on Ray nodes", value=found["operations"], unit=""),
        Figure(
            name="of them failed, lost, doubled, reordered or stale", value=wrong, unit="", kind=Bound.BELOW, limit=1
        ),
        Figure(
            name=f"faults of {len(faults)} that bit",
            value=found["faults_bit"],
            unit="",
            kind=Bound.AT_LEAST,
            limit=len(faults),
        ),
    ]
    for name, aim_p50_s in RAY_FAULTS.items():
        gaps = found["gaps_ms"][name]
        figures.append(in_seconds(f"{name} on Ray: gap, p50 of {gaps['count']}", gaps["p50"] / 1000, aim_p50_s))
        figures.append(in_seconds(f"{name} on Ray: gap, worst", gaps["max"] / 1000, 1.0))
    return figures


async def measured(name: str, pace: Pace, say: Say) -> list[Figure]:
    """The figures of one topic, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as folder:
        return await TOPICS[name](pace, Path(folder), say)


TOPICS: dict[str, Callable[[Pace, Path, Say], Awaitable[list[Figure]]]] = {
    "throughput": throughput,
    "lone": lone,
    "hot": hot,
    "states": states,
    "store": stores,
    "activation": activation,
    "stripes": stripes,
    "failover": failover,
    "stopped": stopped,
    "handoff": handoff,
    "drain": drain,
    "join": join,
    "coordinator": coordinator,
    "allocation": allocation,
    "overload": overload,
    "neighbours": neighbours,
    "memory": memory,
    "tells": tells,
    "transfers": transfers,
    "resume": resume,
    "start": start_up,
    "main-job": main_job,
    "ray-faults": ray_faults,
}
