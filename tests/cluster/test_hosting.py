"""A host as a client of its own cluster: what its handlers ask, and what they send, leaves by different doors."""

from __future__ import annotations

import asyncio

from scenario import Scenario, play, until

import atoll
from atoll.sharding.hashing import shard_of


class Clerk(atoll.Entity):
    """Asks and sends where it is told to."""

    notes: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def note(self, text: str) -> int:
        self.notes.append(text)
        return len(self.notes)

    @atoll.command
    async def ask(self, other: str, text: str) -> int:
        return await self.context.entity(Clerk, other).note(text)

    @atoll.command
    def send(self, other: str, text: str, times: int = 1) -> None:
        for number in range(times):
            self.context.send(self.context.entity(Clerk, other).note, f"{text} {number}")

    @atoll.query
    def read(self) -> list[str]:
        return self.notes


def clerk_in(shard: int, shards: int) -> str:
    return next(f"c{n}" for n in range(1000) if shard_of(f"c{n}", shards) == shard)


def test_messages_that_nobody_takes_hold_up_no_ask() -> None:
    """PR24, M17: the shard of the receivers has no owner, and their stream is held. Asks have a connection of their own."""

    async def script(s: Scenario) -> None:
        host = await s.host(0, 1)
        client = await s.client("X")
        here, there, nowhere = (clerk_in(shard, 3) for shard in range(3))
        await client.entity(Clerk, here).send(nowhere, "hello", 50)
        courier = s.running[host.incarnation]._courier
        await until(lambda: courier._lanes and all(stream.retries > 2 for stream in courier._lanes.values()))
        began = asyncio.get_running_loop().time()
        assert await client.entity(Clerk, here).ask(there, "now") == 1
        assert asyncio.get_running_loop().time() - began < 1
        await s.give(host, 2)
        await until(lambda: not courier._lanes)
        assert await client.entity(Clerk, nowhere).read() == [f"hello {number}" for number in range(50)]

    play(script, Clerk, shards=3, window_commands=8)


def test_a_host_that_stops_hangs_up() -> None:
    """PR24: what it asked and sent through is closed with it, also a connection that was just being made. What it had
    not delivered is the next owner's to send."""

    async def script(s: Scenario) -> None:
        first, second = await s.host(0), await s.host(1)
        client = await s.client("X")
        here, there = clerk_in(0, 2), clerk_in(1, 2)
        assert await client.entity(Clerk, here).ask(there, "asked") == 1
        await client.entity(Clerk, here).send(there, "sent")
        server = s.running[second.incarnation].server
        await until(lambda: server.connections == 3)
        await s.hosts[first.incarnation].run(s.running[first.incarnation].stop())
        await until(lambda: server.connections == 1)
        await asyncio.sleep(30)
        assert server.connections == 1, "the client's"
        assert await client.entity(Clerk, there).read() == ["asked"]
        await s.give(second, 0)
        await asyncio.sleep(1)
        assert await client.entity(Clerk, there).read() == ["asked", "sent 0"]

    play(script, Clerk, shards=2)
