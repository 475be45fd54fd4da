"""SQLite and PostgreSQL side by side, in one run: appends alone, and durable asks through one and two whole hosts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from counters import Counter, app
from figures import Bound, Figure, against, percentile
from load import drive
from plain_cluster import PlainCluster, plain_cluster
from topic import ENTITIES, HERE, IN_FLIGHT, WARM_UP_S, Pace, Say, additions, postgres_stores

from atoll.persistence.open import open_store
from atoll.persistence.records import decode_batch

ROW_BYTES = 250
"""A lone command as a row of the log, about."""
BATCH_BYTES = 100 * ROW_BYTES
"""A hundred of them in one row."""
ASKS_AT_LEAST = {"SQLite": 15_000, "PostgreSQL": 10_000}
"""Per second, from one host: half of what a quiet machine does, since a run beside other work is no failure."""
LONE_BELOW_MS = {"SQLite": 0.8, "PostgreSQL": 1.2}


class Batches(msgspec.Struct, frozen=True):
    """Rows as a host wrote them."""

    contents: list[bytes]
    records: int
    """In all of them."""


async def stores(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Each figure of PostgreSQL against the same of SQLite."""
    async with postgres_stores("alone", "repeated", "one", "two") as urls:
        sqlite = await _measured("SQLite", [f"sqlite:{folder / n}" for n in "arst"], folder / "on-sqlite", pace, say)
        postgres = await _measured("PostgreSQL", urls, folder / "on-postgresql", pace, say)
    return [*sqlite, *(against(figure, reference) for figure, reference in zip(postgres, sqlite, strict=True))]


async def _measured(name: str, urls: Sequence[str], folder: Path, pace: Pace, say: Say) -> list[Figure]:
    """On four stores of one kind, each new."""
    alone, repeated, one, two = urls
    say(f"appends on {name}")
    appends = await _appends(name, alone, pace.seconds)
    say(f"durable asks on {name}")
    plain: PlainCluster
    async with plain_cluster("counters:app", app.name, folder / "one", app_dir=HERE, store=one) as plain:
        many_per_second, lone_ms = await _asks(plain, pace)
        batches = await newest_batches(plain)
    say(f"{name} alone")
    alone_per_second = await store_alone(repeated, batches, pace.seconds)
    say(f"durable asks of two hosts on {name}")
    async with plain_cluster("counters:app", app.name, folder / "two", app_dir=HERE, hosts=2, store=two) as plain:
        two_per_second, _lone_ms = await _asks(plain, pace)
    return [
        *appends,
        Figure(
            name=f"{name}: durable asks, 512 in flight",
            value=round(many_per_second),
            unit="asks/s",
            kind=Bound.AT_LEAST,
            limit=ASKS_AT_LEAST[name],
        ),
        Figure(name=f"{name}: the same of two hosts", value=round(two_per_second), unit="asks/s"),
        Figure(name=f"{name} alone, the same batches", value=round(alone_per_second), unit="records/s"),
        Figure(
            name=f"{name}: durable asks / the store alone", value=round(many_per_second / alone_per_second, 3), unit=""
        ),
        Figure(
            name=f"{name}: a lone durable ask, p50",
            value=round(lone_ms, 3),
            unit="ms",
            kind=Bound.AIM_BELOW,
            limit=LONE_BELOW_MS[name],
        ),
    ]


async def _appends(name: str, url: str, seconds: float) -> list[Figure]:
    """One after the other, as a host appends: small rows and large ones."""
    store = open_store(url)
    await store.open(app.name, 1)
    try:
        took_ms = {}
        for size in (ROW_BYTES, BATCH_BYTES):
            incarnation = await store.register_host("127.0.0.1:1", "bench", None)
            content, samples, n = b"~" * size, [], 0
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end:
                n += 1
                await store.append(incarnation, n, content)
                samples.append(1000 * (time.perf_counter() - began))
            took_ms[size] = samples
    finally:
        await store.close()
    lone, batches = took_ms[ROW_BYTES], took_ms[BATCH_BYTES]
    return [
        Figure(name=f"{name}: append of one command, p50", value=round(percentile(lone, 50), 3), unit="ms"),
        Figure(name=f"{name}: append of one command, p99", value=round(percentile(lone, 99), 3), unit="ms"),
        Figure(name=f"{name}: appends of one command", value=round(len(lone) / seconds), unit="appends/s"),
        Figure(name=f"{name}: appends of a hundred", value=round(len(batches) / seconds), unit="appends/s"),
    ]


async def _asks(plain: PlainCluster, pace: Pace) -> tuple[float, float]:
    """Durable asks per second, 512 in flight; the median of a lone one, in milliseconds."""
    async with plain.connect() as cluster:
        asks = additions(cluster, Counter, ENTITIES)
        await drive(asks, IN_FLIGHT, WARM_UP_S)
        lone = await drive(asks, 1, pace.seconds)
        many = await drive(asks, IN_FLIGHT, pace.seconds)
    return many.per_second, percentile([1000 * latency for latency in lone.latencies_s], 50)


# ---- the store alone -------------------------------------------------------------------------------------------------


async def newest_batches(plain: PlainCluster) -> Batches:
    """What stands in the first host's log."""
    incarnation = plain.hosts[0].incarnation
    rows = await plain.store.read_log(incarnation)
    return Batches(
        [row.content for row in rows], sum(len(decode_batch(row.content, incarnation, row.n)) for row in rows)
    )


async def store_alone(url: str, batches: Batches, seconds: float) -> float:
    """Records per second when nothing but `append` runs: the rows that a host wrote, one after the other again."""
    store = open_store(url)
    await store.open(app.name, 1)
    try:
        incarnation = await store.register_host("127.0.0.1:1", "bench", None)
        n = 0
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            n += 1
            await store.append(incarnation, n, batches.contents[n % len(batches.contents)])
        return n * (batches.records / len(batches.contents)) / (time.perf_counter() - began)
    finally:
        await store.close()
