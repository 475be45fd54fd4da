"""A real host under more than it can do: everybody gets an answer, its memory stays bounded, and service is back at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from crowd import Desk
from plain_cluster import PlainCluster, plain_cluster
from pressure import MIB, Memory

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
BACK_S = 5.0


@asynccontextmanager
async def crowded(folder: Path, **settings: Any) -> AsyncIterator[PlainCluster]:
    async with plain_cluster("crowd:app", "crowd", folder, app_dir=HELPERS, hosts=1, settings=settings) as cluster:
        yield cluster


async def served_again(cluster: Any, within_s: float = BACK_S) -> None:
    """A quick command takes no time, soon."""
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        await cluster.entity(Desk, "probe").quick.using(timeout=within_s)()
        if time.monotonic() - began < 0.25:
            return
        assert time.monotonic() < deadline, "service is not back"


async def many(work: list[Any]) -> Counter[str]:
    """How each ended."""
    ends = await asyncio.gather(*work, return_exceptions=True)
    print(next((end for end in ends if isinstance(end, BaseException)), None))  # noqa: T201 - shown when it fails
    return Counter(type(end).__name__ if isinstance(end, BaseException) else "OK" for end in ends)


async def test_more_large_commands_than_the_host_may_keep(tmp_path: Path) -> None:
    """R05, M14: sixteen clients with 512 commands of 32 KiB each, for entities that are busy: 256 MiB, of which it keeps
    16. It stops reading, goes on when there is room, and all are answered."""
    async with crowded(tmp_path, queued_bytes_max=16 * MIB) as running, AsyncExitStack() as stack:
        memory = await stack.enter_async_context(Memory.of(running.hosts[0].process.pid))
        clients = [await stack.enter_async_context(running.connect()) for _ in range(16)]
        blockers = [
            asyncio.ensure_future(clients[0].entity(Desk, f"d{n}").slow.using(timeout=60)(3.0)) for n in range(64)
        ]
        await asyncio.sleep(0.5)
        data = bytes(32 * 1024)
        work = [
            client.entity(Desk, f"d{n % 64}").take.using(timeout=100)(data) for client in clients for n in range(512)
        ]
        assert await many(work) == {"OK": 16 * 512}
        memory.look()
        assert memory.grown < 160, "mailboxes, the overlay of what is not in the tables, and buffers"
        await asyncio.gather(*blockers)
        await served_again(clients[0])


async def test_a_host_that_was_stopped_for_a_second_under_load(tmp_path: Path) -> None:
    """R05, S05: what piled up in its sockets meanwhile is worked off, and nobody fails."""
    async with crowded(tmp_path) as running, running.connect() as cluster:
        await served_again(cluster)
        work = asyncio.ensure_future(many([cluster.entity(Desk, f"d{n % 500}").quick() for n in range(8_000)]))
        await asyncio.sleep(0.1)
        running.hosts[0].kill(signal.SIGSTOP)
        await asyncio.sleep(1)
        running.hosts[0].kill(signal.SIGCONT)
        assert await work == {"OK": 8_000}
        await served_again(cluster)
        counts = [await cluster.entity(Desk, f"d{n}").count() for n in range(0, 500, 50)]
        assert counts == [16] * 10
