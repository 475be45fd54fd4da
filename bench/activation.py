"""Entities that come into memory: one by one, and ten thousand at once on a host that has just started.

Their host has written the tables and is killed, and the next one has nothing of them in memory: each query is one
activation, and one or two reads of the store. A query appends nothing, so that nothing else is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from counters import Book, Purse, app
from figures import Bound, Figure, against, percentile
from plain_cluster import PlainCluster, plain_cluster
from topic import HERE, IN_FLIGHT, Ask, Pace, Say, postgres_stores

from atoll.cluster.api import Cluster

LONE, STORM = 2000, 10_000
PATIENCE_S = 60.0
"""The last of a storm waits for all others."""
WRITTEN_TIMEOUT_S = 60.0
LOOK_S = 0.1
AT_LEAST = {"SQLite": 3000, "PostgreSQL": 3000}
"""Activations per second in a storm, of entities with a state."""


async def activation(_pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Each figure of PostgreSQL against the same of SQLite."""
    async with postgres_stores("activation") as (url,):
        sqlite = await _measured("SQLite", folder / "sqlite", None, say)
        postgres = await _measured("PostgreSQL", folder / "postgresql", url, say)
    return [*sqlite, *(against(figure, reference) for figure, reference in zip(postgres, sqlite, strict=True))]


async def _measured(name: str, folder: Path, store: str | None, say: Say) -> list[Figure]:
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder, app_dir=HERE, store=store) as plain,
        plain.connect(discover=True) as cluster,
    ):
        say(f"making entities on {name}")
        await _work([partial(cluster.entity(Purse, f"p{n}").receive, 1) for n in range(LONE + STORM)])
        await _work([partial(cluster.entity(Book, f"b{n}").note, "a line") for n in range(STORM)])
        await _until_written(plain, LONE + 2 * STORM)
        await _next_host(plain, cluster)
        say(f"activations on {name}")
        lone_s = await _one_by_one([cluster.entity(Purse, f"p{n}").credits for n in range(STORM, STORM + LONE)])
        storm_s = await _at_once(
            [cluster.entity(Purse, f"p{n}").credits.using(timeout=PATIENCE_S) for n in range(STORM)]
        )
        books_s = await _at_once([cluster.entity(Book, f"b{n}").lines.using(timeout=PATIENCE_S) for n in range(STORM)])
    return [
        Figure(name=f"{name}: a lone activation, p50", value=round(1000 * percentile(lone_s, 50), 3), unit="ms"),
        Figure(name=f"{name}: activations one by one", value=round(LONE / sum(lone_s)), unit="1/s"),
        Figure(
            name=f"{name}: activations in a storm of {STORM:,}",
            value=round(STORM / storm_s),
            unit="1/s",
            kind=Bound.AT_LEAST,
            limit=AT_LEAST[name],
        ),
        Figure(name=f"{name}: the same, event-sourced", value=round(STORM / books_s), unit="1/s"),
    ]


async def _work(asks: Sequence[Ask]) -> None:
    """Each once, many under way."""
    tickets = iter(asks)

    async def work() -> None:
        for ask in tickets:
            await ask()

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


async def _until_written(plain: PlainCluster, commands: int) -> None:
    """Until the tables hold what so many commands did: else it would be recovered from the log, into memory."""
    async with asyncio.timeout(WRITTEN_TIMEOUT_S):
        while sum(row.position for row in await plain.store.shards()) < commands:  # noqa: ASYNC110 - a host's doing
            await asyncio.sleep(LOOK_S)


async def _next_host(plain: PlainCluster, cluster: Cluster) -> None:
    await plain.start_host()
    plain.hosts[0].kill()
    others = [cluster.entity(Purse, f"other-{n}").credits.using(timeout=PATIENCE_S) for n in range(8 * IN_FLIGHT)]
    await _work(others)  # of every shard: nobody waits for a takeover any more


async def _one_by_one(asks: Sequence[Ask]) -> list[float]:
    taken = []
    for ask in asks:
        began = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - began)
    return taken


async def _at_once(asks: Sequence[Ask]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(ask() for ask in asks))
    return time.perf_counter() - began
