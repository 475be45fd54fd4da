"""The app that is measured: entities that do next to nothing, so that what is left is the cost of Atoll itself.

A host process imports it as `counters:app`; the load generator imports it for its classes.
"""

from __future__ import annotations

import atoll


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


app = atoll.App("bench", entities=[Counter, Tally, Blob])
