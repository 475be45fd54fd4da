"""A real host under more than it can do: everybody gets an answer, its memory stays bounded, and service is back at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from plain_cluster import PlainCluster, plain_cluster

from atoll.cluster.handshake import ClientHandshake, ClientTerms, Open, Say
from atoll.cluster.network import split_address
from atoll.cluster.wire import HANDSHAKE, FrameReader, encode_frame
from atoll.sharding.hashing import shard_of
from atoll.sharding.messages import Call

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
BACK_S = 5.0
MIB = 1 << 20


@asynccontextmanager
async def crowded(folder: Path, **settings: Any) -> AsyncIterator[PlainCluster]:
    async with plain_cluster("crowd:app", "crowd", folder, app_dir=HELPERS, hosts=1, settings=settings) as cluster:
        yield cluster


def rss(cluster: PlainCluster) -> int:
    (host,) = cluster.hosts
    return psutil.Process(host.process.pid).memory_info().rss


def desk() -> Any:
    from crowd import Desk

    return Desk


async def served_again(cluster: Any, within_s: float = BACK_S) -> None:
    """A quick command takes no time, soon."""
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        await cluster.entity(desk(), "probe").quick.using(timeout=within_s)()
        if time.monotonic() - began < 0.25:
            return
        assert time.monotonic() < deadline, "service is not back"


async def many(work: list[Any]) -> Counter[str]:
    """How each ended."""
    ends = await asyncio.gather(*work, return_exceptions=True)
    print(next((end for end in ends if isinstance(end, BaseException)), None))  # noqa: T201 - shown when it fails
    return Counter(type(end).__name__ if isinstance(end, BaseException) else "OK" for end in ends)


async def test_ten_thousand_senders_wait_for_one_slow_entity(tmp_path: Path) -> None:
    """M14, M12: a second for each command, five seconds for each sender. A few are served, all others hear that theirs did
    not run; the other entities of the host do not notice."""
    async with crowded(tmp_path) as running, running.connect() as cluster:
        slow, before = cluster.entity(desk(), "slow").slow, rss(running)
        await served_again(cluster)
        work = [slow.using(timeout=5)(1.0) for _ in range(10_000)]
        ending = asyncio.ensure_future(many(work))
        await asyncio.sleep(1)
        for _ in range(20):
            await served_again(cluster, 1.0)
        ends = await ending
        assert sum(ends.values()) == 10_000
        assert 3 <= ends["OK"] <= 5
        assert ends["Unavailable"] >= 9_900
        assert set(ends) <= {"OK", "Unavailable", "OutcomeUnknown", "DeadlineExceeded"}
        await served_again(cluster)
        assert rss(running) - before < 64 * MIB


async def test_more_large_commands_than_the_host_may_keep(tmp_path: Path) -> None:
    """R05, M14: sixteen clients with 512 commands of 32 KiB each, for entities that are busy: 256 MiB, of which it keeps
    16. It stops reading, goes on when there is room, and all are answered."""
    async with crowded(tmp_path, queued_bytes_max=16 * MIB) as running, AsyncExitStack() as stack:
        before, highest = rss(running), 0
        clients = [await stack.enter_async_context(running.connect()) for _ in range(16)]
        blockers = [
            asyncio.ensure_future(clients[0].entity(desk(), f"d{n}").slow.using(timeout=60)(3.0)) for n in range(64)
        ]
        await asyncio.sleep(0.5)
        data = bytes(32 * 1024)
        work = [
            client.entity(desk(), f"d{n % 64}").take.using(timeout=100)(data) for client in clients for n in range(512)
        ]
        ending = asyncio.ensure_future(many(work))
        while not ending.done():
            highest = max(highest, rss(running))
            await asyncio.sleep(0.05)
        assert ending.result() == {"OK": 16 * 512}
        assert highest - before < 160 * MIB, "mailboxes, the overlay of what is not in the tables, and buffers"
        await asyncio.gather(*blockers)
        await served_again(clients[0])


async def test_a_client_that_never_reads(tmp_path: Path) -> None:
    """R05: it asks for a gigabyte and takes nothing of it. The host keeps a few MiB for it, then drops it."""
    async with crowded(tmp_path) as running, running.connect() as cluster:
        await served_again(cluster)
        before = rss(running)
        reader, writer = await spoken_to(running)
        for number in range(1, 1001):
            arguments = msgspec.msgpack.encode({"size": MIB - 100})
            call = Call(shard_of("x", 256), number, 1, 0, 1, 0, "Desk", "x", "give", arguments, 60_000)
            writer.write(encode_frame([call], MIB))
        highest = 0
        for _ in range(60):
            await served_again(cluster, 1.0)
            highest = max(highest, rss(running))
            await asyncio.sleep(0.1)
        assert highest - before < 96 * MIB
        writer.close()
        assert reader is not None


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_five_thousand_connections_of_which_half_are_silent(tmp_path: Path) -> None:
    """R05: those that say nothing at all are dropped with the handshake's time-out; those that are connected and silent
    with the heartbeats'; the working ones go on."""
    async with crowded(tmp_path) as running, running.connect() as cluster, AsyncExitStack() as stack:
        before = rss(running)
        host, port = split_address(running.addresses[0])
        silent = [await asyncio.open_connection(host, port) for _ in range(2_500)]
        clients = [await stack.enter_async_context(running.connect()) for _ in range(2_500)]
        for number, client in enumerate(clients):
            assert await client.entity(desk(), f"d{number}").quick() == 1
        await asyncio.sleep(8)
        closed = sum([await gone(reader) for reader, _ in silent])
        assert closed == 2_500
        await served_again(cluster)
        assert rss(running) - before < 200 * MIB
        for _, writer in silent:
            writer.close()


async def test_a_host_that_was_stopped_for_a_second_under_load(tmp_path: Path) -> None:
    """R05, S05: what piled up in its sockets meanwhile is worked off, and nobody fails."""
    async with crowded(tmp_path) as running, running.connect() as cluster:
        await served_again(cluster)
        work = asyncio.ensure_future(many([cluster.entity(desk(), f"d{n % 500}").quick() for n in range(8_000)]))
        await asyncio.sleep(0.1)
        running.hosts[0].kill(signal.SIGSTOP)
        await asyncio.sleep(1)
        running.hosts[0].kill(signal.SIGCONT)
        assert await work == {"OK": 8_000}
        await served_again(cluster)
        counts = [await cluster.entity(desk(), f"d{n}").count() for n in range(0, 500, 50)]
        assert counts == [16] * 10


async def gone(reader: asyncio.StreamReader) -> bool:
    """It says why it is refused, and closes."""
    try:
        async with asyncio.timeout(2):
            await reader.read()
    except TimeoutError:
        return False
    return True


async def spoken_to(running: PlainCluster) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with its handshake done, by hand."""
    host, port = split_address(running.addresses[0])
    reader, writer = await asyncio.open_connection(host, port, limit=1)
    terms = ClientTerms(app="crowd", role="client", client=0, generation=1, frame_bytes_max=16 * MIB, software="")
    shake = ClientHandshake(terms, running.token, b"n" * 32)
    frames = FrameReader(4096, HANDSHAKE)
    writer.write(encode_frame([shake.hello], 4096))
    while True:
        for messages in frames.feed(await reader.read(65536)):
            for message in messages:
                for effect in shake.received(message):
                    if isinstance(effect, Say):
                        writer.write(encode_frame([effect.message], 4096))
                    elif isinstance(effect, Open):
                        transport: Any = writer.transport
                        transport.pause_reading()
                        return reader, writer
