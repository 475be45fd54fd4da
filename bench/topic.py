"""What all topics share: the cluster that is measured, its entities, and how long things take."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from counters import Counter, Tally, app
from plain_cluster import plain_cluster

from atoll.cluster.api import Cluster

sys.path.append(str(Path(__file__).resolve().parents[1] / "deploy"))  # a folder of scripts, no package

from postgres_server import PostgresServer

ENTITIES = 1000
IDS = [f"e{number}" for number in range(ENTITIES)]
IN_FLIGHT = 512
HERE = Path(__file__).resolve().parent
WARM_UP_S = 1.0

Say = Callable[[str], None]
Ask = Callable[[], Awaitable[object]]


class Pace:
    """How long things are measured, and how often."""

    def __init__(self, *, quick: bool, long: bool) -> None:
        self.quick = quick
        self.seconds = 2.0 if quick else 5.0
        self.throughput_s = 300.0 if long else self.seconds
        self.runs = 3 if quick else 10
        """Of what a cluster is measured by once: kills, moves, joins."""


def one_host(folder: Path) -> Any:
    return plain_cluster("counters:app", app.name, folder, app_dir=HERE)


def additions(cluster: Cluster, kind: type[Counter | Tally], count: int) -> list[Ask]:
    """One ask per entity."""
    return [partial(cluster.entity(kind, id).add, 1) for id in IDS[:count]]


@contextlib.asynccontextmanager
async def postgres_stores(*names: str) -> AsyncIterator[list[str]]:
    """The URLs of fresh stores on a PostgreSQL server of their own: on this machine, over loopback, with fsync and
    `synchronous_commit` on. It shares the cores with the rest, which a machine of its own would not."""
    async with contextlib.AsyncExitStack() as stack:
        made = contextlib.ExitStack()  # what starts the server runs an event loop of its own: on threads
        stack.push_async_callback(asyncio.to_thread, made.close)
        server = await asyncio.to_thread(made.enter_context, PostgresServer.start())
        yield [await asyncio.to_thread(server.create_store, name) for name in names]
