"""Many entities that a store knows, and how many of them each host has brought into memory."""

from __future__ import annotations

import os

import atoll

ACTIVATED = 0
"""In this process."""


class Known(atoll.Entity):
    n: int = 0

    async def on_activate(self) -> None:
        global ACTIVATED  # noqa: PLW0603 - one per process is what is asked for
        ACTIVATED += 1

    @atoll.command
    def add(self) -> tuple[int, int, int]:
        """(how often this entity was called, the host's process, how many entities that has activated)"""
        self.n += 1
        return self.n, os.getpid(), ACTIVATED


app = atoll.App("known", entities=[Known])
