"""The transport alone: a server that answers each Call at once, and one client, in two processes over TCP loopback.

    python bench/echo.py [--in-flight 1 64 512] [--seconds 2] [--bytes 100]

Prints requests per second and the median and 99th percentile of the round trip, per number of calls in flight. What a
durable command costs on top of this is the host's and the store's doing.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from atoll.actors.settings import Settings
from atoll.cluster.link import Access, Link
from atoll.cluster.network import TcpNetwork
from atoll.cluster.server import Server
from atoll.cluster.system import SystemWorld
from atoll.cluster.token import Token
from atoll.cluster.wire import Welcome
from atoll.sharding.messages import Answer, Call, Credit, Message, Peer

_TOKEN = Token(bytes(32))


class Echo:
    """Implements `Receiver`: every call is answered with its own arguments."""

    def connected(self, peer: Peer) -> None: ...

    def received(self, peer: Peer, calls: list[Any]) -> None:
        for call in calls:
            peer.reply(call, Answer(call.shard, call.number, 0, call.arguments))

    def disconnected(self, peer: Peer) -> None: ...

    async def admit(self, client: int) -> int | None:
        return client or 1


class Load:
    """Implements `LinkListener`: keeps a number of calls in flight and times each."""

    def __init__(self, in_flight: int, size: int) -> None:
        self.in_flight = in_flight
        self.arguments = bytes(size)
        self.sent_at: dict[int, float] = {}
        self.latencies: list[float] = []
        self.next = 1
        self.running = True
        self.done = asyncio.Event()

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        for _ in range(self.in_flight):
            self._send(link)

    def received(self, link: Link, messages: list[Message]) -> None:
        now = time.perf_counter()
        for message in messages:
            if isinstance(message, Credit):
                continue  # in flight are fewer than a window: there is always room
            assert isinstance(message, Answer)
            self.latencies.append(now - self.sent_at.pop(message.number))
            if self.running:
                self._send(link)
        if not self.sent_at:
            self.done.set()

    def closed(self, link: Link, reason: str) -> None:
        self.done.set()

    def _send(self, link: Link) -> None:
        number = self.next
        self.next += 1
        self.sent_at[number] = time.perf_counter()
        link.send(Call(number & 255, number, 1, 0, 1, 0, "Account", "alice", "deposit", self.arguments, 10_000))


def serve(pipe: Connection) -> None:
    async def main() -> None:
        server = Server(
            Echo(),
            app="echo",
            shards=256,
            token=_TOKEN,
            settings=Settings(),
            network=TcpNetwork(),
            world=SystemWorld(),
        )
        pipe.send(await server.listen("127.0.0.1", 0))
        server.serve(1)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def measure(address: str, in_flight: int, seconds: float, size: int) -> tuple[float, float, float]:
    """(requests per second, p50 in us, p99 in us)"""
    load = Load(in_flight, size)
    start = time.perf_counter()
    access = Access(app_name="echo", token=_TOKEN, settings=Settings(), world=SystemWorld(), network=TcpNetwork())
    link = Link(load, address, access)
    await link.open()
    await asyncio.sleep(seconds)
    load.running = False
    elapsed = time.perf_counter() - start
    count = len(load.latencies)
    await load.done.wait()
    link.close("measured")
    cuts = statistics.quantiles(load.latencies, n=100)
    return count / elapsed, cuts[49] * 1e6, cuts[98] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--bytes", type=int, default=100)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        address = ours.recv()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for in_flight in arguments.in_flight:
                rate, p50, p99 = runner.run(measure(address, in_flight, arguments.seconds, arguments.bytes))
                print(f"{in_flight:5} in flight: {rate:9,.0f} requests/s   p50 {p50:8,.0f} us   p99 {p99:8,.0f} us")
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
