"""What the real clusters of these tests run. Two apps, to see that they do not see each other."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import atoll


class Ledger(atoll.Entity):
    """Every value that was ever appended, in order; an append answers with its index."""

    entries: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, value: str) -> int:
        self.entries.append(value)
        return len(self.entries) - 1

    @atoll.query
    def read(self) -> list[str]:
        return list(self.entries)


class Burner(atoll.Entity, durable=False):
    """Holds its host's event loop."""

    @atoll.command
    def burn(self, seconds: float) -> int:
        """Compute for so long without ever giving way; returns the process that did."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return os.getpid()


class Gate(atoll.Entity):
    """Its command takes until a file is there."""

    passed: int = 0

    @atoll.command
    async def wait_for(self, path: str) -> int:
        while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - it is opened from another process
            await asyncio.sleep(0.02)
        self.passed += 1
        return self.passed

    @atoll.query
    def count(self) -> int:
        return self.passed


app = atoll.App("under-test", entities=[Ledger, Burner, Gate])
other = atoll.App("under-test-2", entities=[Ledger])
picky = atoll.App("picky", entities=[Ledger], requires={"node:__internal_head__": 1})
"""Its hosts may only be on the head node, which alone has that resource."""
