"""An app for crowds: entities that are slow, cheap, or large in what they take."""

from __future__ import annotations

import asyncio

import atoll


class Desk(atoll.Entity):
    served: int = 0

    @atoll.command
    async def slow(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.served += 1
        return self.served

    @atoll.command
    def quick(self) -> int:
        self.served += 1
        return self.served

    @atoll.command
    def take(self, data: bytes) -> int:
        self.served += 1
        return len(data)

    @atoll.query
    def count(self) -> int:
        return self.served


app = atoll.App("crowd", entities=[Desk])
