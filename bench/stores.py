"""SQLite and PostgreSQL side by side, in one run: appends alone, and durable asks through a whole host.

PostgreSQL's server is one of its own (deploy/postgres_server.py) on this machine, over loopback, with fsync and
`synchronous_commit` on; it shares the cores with the rest, which a server of its own would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from counters import Counter, app
from figures import Figure, against, percentile
from load import drive
from plain_cluster import plain_cluster
from topic import ENTITIES, HERE, IN_FLIGHT, WARM_UP_S, Pace, Say, additions

from atoll.persistence.open import open_store
from atoll.persistence.postgres_migrate import migrate

sys.path.append(str(HERE.parent / "deploy"))  # a folder of scripts, no package

from postgres_server import PostgresServer

ROW_BYTES = 250
"""A lone command as a row of the log, about."""
BATCH_BYTES = 100 * ROW_BYTES
"""A hundred of them in one row."""


async def stores(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Each figure of PostgreSQL against the same of SQLite."""
    async with _postgres() as urls:
        measured = []
        for name, alone, under_host in (
            ("SQLite", f"sqlite:{folder / 'alone'}", None),
            ("PostgreSQL", *urls),
        ):
            say(f"appends on {name}")
            found = await _appends(name, alone, pace.seconds)
            say(f"durable asks on {name}")
            found += await _asks(name, folder / name, under_host, pace)
            measured.append(found)
    sqlite, postgres = measured
    return [*sqlite, *(against(figure, reference) for figure, reference in zip(postgres, sqlite, strict=True))]


@contextlib.asynccontextmanager
async def _postgres() -> AsyncIterator[tuple[str, str]]:
    """The URLs of two fresh stores on one server."""
    starting = PostgresServer.start()
    server = await asyncio.to_thread(starting.__enter__)
    try:
        for name in ("alone", "asks"):
            await asyncio.to_thread(server.create_database, name)
            await migrate(server.owner_url(name))
        yield server.url("alone"), server.url("asks")
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)


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


async def _asks(name: str, folder: Path, store: str | None, pace: Pace) -> list[Figure]:
    async with (
        plain_cluster("counters:app", app.name, folder, app_dir=HERE, store=store) as plain,
        plain.connect() as cluster,
    ):
        asks = additions(cluster, Counter, ENTITIES)
        await drive(asks, IN_FLIGHT, WARM_UP_S)
        many = await drive(asks, IN_FLIGHT, pace.seconds)
        lone = await drive(asks, 1, pace.seconds)
    lone_ms = percentile([1000 * latency for latency in lone.latencies_s], 50)
    return [
        Figure(name=f"{name}: durable asks, 512 in flight", value=round(many.per_second), unit="asks/s"),
        Figure(name=f"{name}: a lone durable ask, p50", value=round(lone_ms, 3), unit="ms"),
    ]
