"""What tests of too much load share: what callers heard, and what a process keeps in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
from own_time import OwnTime

import atoll

MIB = 1 << 20
LOOK_S = 0.1
CONDITION_LOOK_S = 0.05
ROWS = 30


async def until(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    """Wait for it; `what` says why the test fails when it takes longer than so many seconds."""
    over = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < over, what()
        await asyncio.sleep(CONDITION_LOOK_S)


class Heard:
    """How calls ended, by name. Anything but an answer and the errors that tell a command's fate fails the test."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.slowest_s = 0.0
        """In this process's own time: how late it hears because it has no core says nothing about anybody."""
        self._time = OwnTime(os.getpid())

    @property
    def all(self) -> int:
        return self.answers + self.errors.total()

    async def of(self, call: Awaitable[object]) -> str:
        """Wait for it. Returns the name of its error, and nothing when it was answered."""
        began = self._time.seconds()
        try:
            await call
        except (atoll.NotExecuted, atoll.OutcomeUnknown) as error:
            name = type(error).__name__
            self.errors[name] += 1
            return name
        else:
            self.answers += 1
            return ""
        finally:
            self.slowest_s = max(self.slowest_s, self._time.seconds() - began)

    def __repr__(self) -> str:
        return f"{self.answers} answers, slowest {self.slowest_s:.2f} s, {dict(self.errors)}"


class Memory:
    """Resident memory of a process over time."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._began = time.monotonic()
        self.samples: list[tuple[float, float]] = []
        """(seconds since the beginning, MiB)"""

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, pid: int) -> AsyncIterator[Memory]:
        memory = cls(pid)
        watch = asyncio.create_task(memory._watch())
        try:
            yield memory
        finally:
            watch.cancel()
            memory.look()

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            rss = self._process.memory_info().rss / MIB
            self.samples.append((time.monotonic() - self._began, rss))

    @property
    def grown(self) -> float:
        """MiB above the beginning, at most."""
        return max(rss for _, rss in self.samples) - self.samples[0][1]

    def grown_after(self, share: float) -> float:
        """MiB above the highest of the first `share` of the time."""
        split = self.samples[-1][0] * share
        before = [rss for at, rss in self.samples if at <= split]
        return max(rss for at, rss in self.samples if at >= split) - max(before)

    def chart(self) -> str:
        """A line per moment, for the report of a test."""
        step = max(1, len(self.samples) // ROWS)
        highest = max(rss for _, rss in self.samples)
        return "\n".join(
            f"{at:7.1f} s {rss:8.1f} MiB {'#' * round(50 * rss / highest)}" for at, rss in self.samples[::step]
        )
