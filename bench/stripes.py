"""Two databases against one: durable asks of the same number of hosts, on PostgreSQL servers of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from counters import Counter, app
from figures import Figure, against
from load import drive
from plain_cluster import PlainCluster, plain_cluster
from topic import ENTITIES, HERE, IN_FLIGHT, WARM_UP_S, Pace, Say, additions, postgres_stores

HOSTS = 2
ROUNDS = 3
"""Of one after the other, so that what else the machine does meets both."""


async def stripes(pace: Pace, folder: Path, say: Say) -> list[Figure]:
    """Where client, hosts and servers share the cores it tells what a second database costs there; what it brings
    shows where each server has a machine."""
    names = [f"{what}_{round_}" for what in ("one", "two") for round_ in range(ROUNDS)]
    asks: dict[int, list[float]] = {1: [], 2: []}
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(postgres_stores(*names)) for _ in range(2)]
        for round_ in range(ROUNDS):
            for count in (1, 2):
                say(f"durable asks of {HOSTS} hosts over {count} databases, round {round_ + 1} of {ROUNDS}")
                place = round_ if count == 1 else ROUNDS + round_
                urls = [server[place] for server in servers[:count]]
                asks[count].append(await _asks(urls, folder / f"{count}-{round_}", pace))
    one, two = (
        Figure(
            name=f"durable asks of {HOSTS} hosts, {databases}",
            value=round(sorted(asks[count])[ROUNDS // 2]),
            unit="asks/s",
        )
        for count, databases in ((1, "one PostgreSQL server"), (2, "two of them"))
    )
    return [one, against(two, one)]


async def _asks(urls: Sequence[str], folder: Path, pace: Pace) -> float:
    """Per second, with as many in flight as elsewhere."""
    plain: PlainCluster
    async with (
        plain_cluster("counters:app", app.name, folder, app_dir=HERE, hosts=HOSTS, store=urls) as plain,
        plain.connect() as cluster,
    ):
        asks = additions(cluster, Counter, ENTITIES)
        await drive(asks, IN_FLIGHT, WARM_UP_S)
        return (await drive(asks, IN_FLIGHT, pace.seconds)).per_second
