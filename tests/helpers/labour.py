"""Work that takes its time, so that what a host can do in a second is known: the app under too much load."""

from __future__ import annotations

import asyncio
import time

import atoll


class Labour(atoll.Entity):
    """Counts what was done."""

    done: int = 0

    @atoll.command
    def compute(self, seconds: float) -> int:
        """Keep the host's loop for so long. It sleeps: the loop stands still as if it computed, and the core is free for
        the senders of the same machine."""
        time.sleep(seconds)
        self.done += 1
        return self.done

    @atoll.command
    async def wait(self, seconds: float) -> int:
        """The same, while the loop is free for others."""
        await asyncio.sleep(seconds)
        self.done += 1
        return self.done

    @atoll.query
    def count(self) -> int:
        return self.done


class Shelf(atoll.Entity, durable=False):
    """Answers that are larger than questions."""

    @atoll.query
    def read(self, size: int) -> bytes:
        return bytes(size)


app = atoll.App("labour", entities=[Labour, Shelf])
