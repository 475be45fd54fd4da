"""A load that does not wait for its answers: senders that send at a rate, whatever became of what they sent before.

The opposite of load.py, whose workers slow down with the host that they measure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import atoll

SENDERS = 2048


class OpenLoad:
    def __init__(self, luck: random.Random) -> None:
        self.sent = 0
        self.latencies_s: list[float] = []
        """Of those that were answered."""
        self._luck = luck
        self._open: set[asyncio.Task[None]] = set()

    async def run(self, ask: Callable[[], Awaitable[object]], per_second: float, seconds: float) -> None:
        """Returns when all that was sent has ended. What is refused or late counts as not answered; anything else that
        an ask raises is raised. A sender that is late itself, on a busy machine, leaves out what it missed."""
        period_s = SENDERS / per_second
        over = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._sender(group, ask, period_s, over))

    async def _sender(
        self, group: asyncio.TaskGroup, ask: Callable[[], Awaitable[object]], period_s: float, over: float
    ) -> None:
        due = time.perf_counter() + self._luck.random() * period_s
        while due < over:
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(self._ask(ask))
            due = max(due + period_s, time.perf_counter())

    async def _ask(self, ask: Callable[[], Awaitable[object]]) -> None:
        self.sent += 1
        sent = time.perf_counter()
        try:
            await ask()
        except (atoll.NotExecuted, atoll.OutcomeUnknown):
            return
        self.latencies_s.append(time.perf_counter() - sent)
