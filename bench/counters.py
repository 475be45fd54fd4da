"""The app that is measured: entities that do next to nothing, so that what is left is the cost of Atoll itself.

A host process imports it as `counters:app`; the load generator imports it for its classes.
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from pathlib import Path

import atoll

LOOK_S = 0.2


@dataclass(frozen=True)
class Noted:
    line: str


class Counter(atoll.Entity):
    """Adds, and answers the sum: the smallest durable command with a state and a result."""

    total: int = 0

    @atoll.command
    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


class Tally(atoll.Entity, durable=False):
    """The same, remembered in memory only."""

    total: int = 0

    @atoll.command
    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


class Blob(atoll.Entity):
    """A state of any size that changes as a whole with every command, while arguments and result stay small."""

    content: bytes = b""
    version: int = 0

    @atoll.command
    def rewrite(self, size: int) -> int:
        self.version += 1
        self.content = self.version.to_bytes(8) * (size // 8)
        return self.version


class Purse(atoll.Entity):
    """Pays by message: the debit and the message are one commit, the credit another."""

    paid: int = 0
    received: int = 0

    @atoll.command
    def pay(self, to: str, amount: int) -> None:
        self.paid += amount
        self.context.send(self.context.entity(Purse, to).receive, amount)

    @atoll.command
    def receive(self, amount: int) -> None:
        self.received += amount

    @atoll.query
    def credits(self) -> int:
        return self.received


class Busy(atoll.Entity):
    """Takes its time: what a host can do in a second is known."""

    done: int = 0

    @atoll.command
    def work(self, seconds: float) -> int:
        """Keep the host's loop for so long. It sleeps: the loop stands still as if it computed, and the core is free
        for the senders of the same machine."""
        time.sleep(seconds)
        self.done += 1
        return self.done


class Pair(atoll.Entity):
    """Two fields."""

    name: str = ""
    amount: int = 0

    @atoll.command
    def put(self, name: str, amount: int) -> None:
        self.name, self.amount = name, amount

    @atoll.query
    def read(self) -> tuple[str, int]:
        return self.name, self.amount


class Collector(atoll.Entity, durable=False):
    """Lets its host's garbage collector look at all that there is."""

    @atoll.query
    def collect(self) -> float:
        """Seconds that it took."""
        began = time.perf_counter()
        gc.collect()
        return time.perf_counter() - began


class Gated(atoll.Entity):
    """Works only once a file exists: until then its commands wait."""

    runs: int = 0

    @atoll.command
    async def work(self, gate: str) -> None:
        while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - whoever makes it is another process
            await asyncio.sleep(LOOK_S)
        self.runs += 1

    @atoll.query
    def done(self) -> int:
        return self.runs


class Book(atoll.EventSourced):
    """Its state is its events."""

    count: int = 0

    @atoll.command
    def note(self, line: str) -> None:
        self.emit(Noted(line))

    @atoll.query
    def lines(self) -> int:
        return self.count

    @atoll.apply
    def _noted(self, _event: Noted) -> None:
        self.count += 1


app = atoll.App("bench", entities=[Counter, Tally, Blob, Purse, Busy, Pair, Collector, Gated, Book])
