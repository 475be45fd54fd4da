"""What the real clusters of these tests run. Two apps, to see that they do not see each other."""

from __future__ import annotations

import os
import time

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


app = atoll.App("under-test", entities=[Ledger, Burner])
other = atoll.App("under-test-2", entities=[Ledger])
