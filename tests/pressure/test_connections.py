"""Very many connections, and such as take nothing or say nothing: real sockets to a real host process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest
from labour import Shelf
from plain_cluster import PlainCluster, plain_cluster
from pressure import MIB, Heard, Memory, until
from wiring import Listener, RawPeer, raw_peer

from atoll.cluster.connection import LINGER_S, PINGS_UNANSWERED_MAX
from atoll.cluster.link import Access, Link
from atoll.cluster.network import TcpNetwork
from atoll.cluster.system import SystemWorld
from atoll.sharding.hashing import shard_of
from atoll.sharding.messages import Answer, Call

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
AT_ONCE = 16
"""Handshakes under way: fewer than a host takes (server.UNPROVED_MAX), and than it does in their time when it is busy."""
CONNECTION_BYTES = 20_000
"""What an open connection may cost a host. (Measured: 5,500.)"""
NOISE_MIB = 24
"""Of the allocator, and what the asks of the bystander leave behind."""
LATE_S = 10.0


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many files as this process, and those that it starts, may open at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connected(cluster: PlainCluster) -> tuple[Link, Listener]:
    """One more trusted connection, with a session of its own."""
    listener = Listener()
    access = Access(
        app_name=cluster.app_name,
        token=cluster.token,
        settings=cluster.settings,
        world=SystemWorld(),
        network=TcpNetwork(),
    )
    link = Link(listener, cluster.addresses[0], access)
    await link.open()
    await listener.until_welcome()
    return link, listener


def fall_silent(link: Link) -> None:
    """Take nothing, answer no ping and send none: a peer that hangs, or that vanished without a word."""
    link._transport.pause_reading()
    link._timer.cancel()


def read(number: int, id: str, size: int) -> Call:
    """A query whose answer has so many bytes."""
    arguments = msgspec.msgpack.encode({"size": size})
    return Call(shard_of(id, 256), number, 1, 0, 1, 0, "Shelf", id, "read", arguments, 60_000)


@contextlib.asynccontextmanager
async def bystander(cluster: PlainCluster) -> AsyncIterator[Heard]:
    """An honest client that asks all the time."""
    heard, over = Heard(), asyncio.Event()
    async with cluster.connect() as client:

        async def asks() -> None:
            while not over.is_set():
                await heard.of(client.entity(Shelf, "bystander").read(10))
                await asyncio.sleep(0.01)

        task = asyncio.create_task(asks())
        try:
            yield heard
        finally:
            over.set()
            await task


# ---- those that do not read


async def do_not_read(folder: Path, clients: int, questions: int, settings: dict[str, float], slow_s: float) -> None:
    unsent_mib = 64
    size = 256 << 10
    async with plain_cluster(
        "labour:app", "labour", folder, app_dir=HELPERS, settings={"unsent_bytes_max": unsent_mib << 20, **settings}
    ) as cluster:
        pid = cluster.hosts[0].process.pid
        process = psutil.Process(pid)
        async with bystander(cluster) as heard:
            await until(lambda: heard.answers > 10, 30, lambda: heard)
            before = process.num_fds()
            links = [(await connected(cluster))[0] for _ in range(clients)]
            assert process.num_fds() == before + clients
            async with Memory.of(pid) as memory:
                for number, link in enumerate(links):
                    fall_silent(link)
                    for each in range(1, questions + 1):
                        link.send(read(each, f"s{number}", size))
                patience_s = (PINGS_UNANSWERED_MAX + 3) * cluster.settings.heartbeat_s + LINGER_S + LATE_S
                await until(
                    lambda: process.num_fds() <= before, patience_s, lambda: f"{process.num_fds() - before} are left"
                )
                answered = heard.answers
                await until(lambda: heard.answers > answered + 50, 30, lambda: heard)
        for link in links:
            link._transport.abort()
    print(f"{memory.grown:.1f} MiB more; {heard}")  # noqa: T201
    assert clients * questions * size > 4 * unsent_mib * MIB, "they did not ask for more than a host keeps"
    # What one round of turns answers comes on top, before the memory of those that are dropped is back (measured: 61 to
    # 124 MiB in all, of the 400 or 5,000 that they asked for).
    assert memory.grown < 2 * unsent_mib + NOISE_MIB
    assert not heard.errors
    assert heard.slowest_s < slow_s


@pytest.mark.timeout(60)
async def test_clients_that_never_read_what_they_asked_for(tmp_path: Path) -> None:
    """R05: what waits for them is bounded over all of them, they are dropped, and a client beside them is served."""
    await do_not_read(tmp_path, 16, 100, {"heartbeat_s": 0.25}, slow_s=1.0)


@pytest.mark.soak
@pytest.mark.timeout(180)
async def test_many_clients_that_never_read_what_they_asked_for(tmp_path: Path) -> None:
    """R05: two hundred of them, with the default heartbeat."""
    await do_not_read(tmp_path, 200, 100, {}, slow_s=5.0)  # 5 GB of answers are made beside it


# ---- those that say nothing


async def connect_many(cluster: PlainCluster, count: int) -> list[tuple[Link, Listener]]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> tuple[Link, Listener]:
        async with places:
            return await connected(cluster)

    return await asyncio.gather(*(one() for _ in range(count)))


def answers(listener: Listener) -> list[Answer]:
    return [message for message in listener.messages if isinstance(message, Answer)]


async def all_answered(peers: Sequence[tuple[Link, Listener]], number: int) -> None:
    """Each of them asks something."""
    for n, (link, listener) in enumerate(peers):
        assert not listener.reasons, listener.reasons
        link.send(read(number, f"p{n}", 10))
    await asyncio.gather(*(listener.until(lambda it=listener: len(answers(it)) == number, 30) for _, listener in peers))
    assert not any(answer.status for _, listener in peers for answer in answers(listener))


async def many_connections(folder: Path, count: int, settings: dict[str, float]) -> None:
    """A quarter never says a word, a quarter falls silent after its handshake, half live on."""
    async with plain_cluster("labour:app", "labour", folder, app_dir=HELPERS, settings=settings) as cluster:
        pid = cluster.hosts[0].process.pid
        process = psutil.Process(pid)
        async with bystander(cluster) as heard:
            await until(lambda: heard.answers > 10, 30, lambda: heard)
            before = process.num_fds()
            async with Memory.of(pid) as memory:
                living = await connect_many(cluster, count // 2)
                stunned = await connect_many(cluster, count // 4)
                mute: list[RawPeer] = [await raw_peer(TcpNetwork(), cluster.addresses[0]) for _ in range(count // 4)]
                for link, _ in stunned:
                    fall_silent(link)
                await all_answered(living, 1)
                most = process.num_fds() - before
                patience_s = (
                    (PINGS_UNANSWERED_MAX + 3) * cluster.settings.heartbeat_s
                    + cluster.settings.handshake_timeout_s
                    + LINGER_S
                    + LATE_S
                )
                await until(
                    lambda: process.num_fds() - before <= len(living),
                    patience_s,
                    lambda: f"{process.num_fds() - before - len(living)} silent ones are left",
                )
                assert process.num_fds() - before == len(living), "living ones were dropped"
                await all_answered(living, 2)
        for link, _ in [*living, *stunned]:
            link._transport.abort()
        for peer in mute:
            peer.transport.abort()
    print(f"{most} open, {memory.grown:.1f} MiB more; {heard}")  # noqa: T201
    assert memory.grown < count * CONNECTION_BYTES / MIB + NOISE_MIB
    assert not heard.errors


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("descriptors")
async def test_400_connections_half_of_them_silent(tmp_path: Path) -> None:
    """R05: the silent ones are dropped, whether they never spoke or fell silent; the others stay, are answered, and cost
    what they may."""
    await many_connections(tmp_path, 400, {"heartbeat_s": 0.25, "handshake_timeout_s": 2.0})


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("descriptors")
async def test_5000_connections_half_of_them_silent(tmp_path: Path) -> None:
    """R05: five thousand, with the default times."""
    await many_connections(tmp_path, int(os.environ.get("CONNECTIONS", "5000")), {})
