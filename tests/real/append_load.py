"""A load whose history can be checked: workers append values that exist once to ledgers drawn at random, and each reply is
the index at which the value stands. What became of every append is kept, with its times and who served its shard.

    async with AppendLoad(cluster, seed=7) as load:
        await load.answered(500)
        ...
    await load.check(cluster)

Every acknowledged append must stand at its index, once; nothing may stand there that nobody sent; and an append that
began after another one of the same ledger was answered must stand behind it.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app_under_test import Ledger

from atoll.cluster.api import Cluster
from atoll.sharding.hashing import shard_of

SHARDS = 256
LEASE_S = 3.0
SOON_S = LEASE_S
"""Whoever answers so soon has not waited for a lease. What the rows say in seconds holds on a machine that does nothing
else: the soak tests of chaos and the benchmarks measure it."""
UNNOTICED_S = LEASE_S / 2
"""The same of what a fault elsewhere costs."""


@dataclass
class Sent:
    ledger: str
    value: str
    owner: int
    """The incarnation that served the ledger's shard when it was sent, as the client knew."""
    began: float
    ended: float = float("inf")
    index: int | None = None

    def took_s(self, now: float) -> float:
        """Until it was answered, or so far."""
        return min(self.ended, now) - self.began


class AppendLoad:
    def __init__(
        self, cluster: Cluster, seed: int, *, workers: int = 16, ledgers: int = 300, pause_s: float = 0.004
    ) -> None:
        """`pause_s`: of each worker between two appends, so that the load leaves the machine room to work."""
        self.seed = seed
        self.sent: list[Sent] = []
        self._cluster = cluster
        self._workers = workers
        self._names = [f"ledger-{seed}-{n}" for n in range(ledgers)]
        self._pause_s = pause_s
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._answer = asyncio.Event()
        self._answers = 0

    async def __aenter__(self) -> Self:
        await self._cluster.client.table_complete()
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(self._workers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def _work(self, number: int) -> None:
        luck = random.Random(f"{self.seed}/{number}")
        count = 0
        while not self._ending:
            name = luck.choice(self._names)
            route = self._cluster.client.route(shard_of(name, SHARDS))
            assert route is not None
            sent = Sent(name, f"{number}:{count}", route.incarnation, time.monotonic())
            self.sent.append(sent)
            sent.index = await self._cluster.entity(Ledger, name).append(sent.value)
            sent.ended = time.monotonic()
            count += 1
            self._answers += 1
            self._answer.set()
            await asyncio.sleep(luck.uniform(0, 2 * self._pause_s))

    async def answered(self, more: int, timeout_s: float = 60.0) -> None:
        """Return once `more` further appends were answered."""
        wanted = self._answers + more
        async with asyncio.timeout(timeout_s):
            while self._answers < wanted:
                self._answer.clear()
                await self._answer.wait()

    def slowest_s(self, owners: set[int], since: float) -> float:
        """Of the appends that were under way at `since` or later, and that went to one of these incarnations."""
        now = time.monotonic()
        times = [sent.took_s(now) for sent in self.sent if sent.owner in owners and sent.ended >= since]
        assert times, "nothing was sent to them"
        return max(times)

    async def check(self, cluster: Cluster) -> None:
        """Compare the history with what the ledgers hold."""
        told = f"seed {self.seed}"
        by_ledger: dict[str, list[Sent]] = {}
        for sent in self.sent:
            by_ledger.setdefault(sent.ledger, []).append(sent)
        for name, history in by_ledger.items():
            entries = await cluster.entity(Ledger, name).read()
            assert len(set(entries)) == len(entries), f"{told}: {name} holds something twice"
            assert set(entries) <= {sent.value for sent in history}, f"{told}: {name} holds what nobody sent"
            for sent in history:
                assert sent.index is not None, f"{told}: {sent} was never answered"
                assert entries[sent.index] == sent.value, f"{told}: {sent} is not at its index"
            latest = -1
            answers = sorted(history, key=lambda sent: sent.ended)
            began = sorted(history, key=lambda sent: sent.began)
            while began:
                sent = began.pop(0)
                while answers and answers[0].ended < sent.began:
                    latest = max(latest, answers.pop(0).index or 0)
                assert sent.index is not None
                assert sent.index > latest, f"{told}: {sent} stands before one that was answered earlier"
