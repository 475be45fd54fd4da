"""The load: so many asks in flight, each worker sending its next one when it has its answer.

A closed loop of worker coroutines through the public API, with no task per command: what is measured is what one client
process of a user gets out of one host process, the client's own work included. Both share this machine's cores with the
coordinator (which is idle but for a look at the store four times a second), so on two cores the client's cost counts
as much as the host's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

SAMPLE_EVERY = 16
"""With many in flight one latency in so many is kept: five minutes of all of them would be gigabytes."""


class Load:
    """What one run of a load came to."""

    def __init__(self) -> None:
        self.asks = 0
        self.seconds = 0.0
        self.latencies_s: list[float] = []

    @property
    def per_second(self) -> float:
        return self.asks / self.seconds


async def drive(
    asks: Sequence[Callable[[], Awaitable[object]]], in_flight: int, seconds: float, *, sample_every: int | None = None
) -> Load:
    """Keep `in_flight` asks under way for so many seconds, going through `asks` in turn.

    Raises what one of them raises: a measured command that fails is a bug, not a data point.
    """
    load = Load()
    if sample_every is None:
        sample_every = 1 if in_flight == 1 else SAMPLE_EVERY
    began = time.perf_counter()
    end = began + seconds
    tickets = iter(range(1 << 62))

    async def work() -> None:
        while True:
            sent = time.perf_counter()
            if sent >= end:
                return
            ticket = next(tickets)
            await asks[ticket % len(asks)]()
            load.asks += 1
            if ticket % sample_every == 0:
                load.latencies_s.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as workers:
        for _ in range(in_flight):
            workers.create_task(work())
    load.seconds = time.perf_counter() - began
    return load
