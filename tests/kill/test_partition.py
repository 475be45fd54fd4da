"""A network that is cut between two hosts, each with a client on its side: over a store that both reach, and one that
lies on one side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from ledger import Operation
from luck import Luck
from namespaces import CutOff, namespace
from plain_cluster import PlainCluster, plain_cluster
from postgres_server import PostgresServer
from steady_client import Spec
from steady_load import SteadyClient, failures, findings_of

from atoll.persistence.spi import HostState, ShardRow, ShardState

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
CALLERS = 24
PATIENCE_S = 60.0
LOOK_S = 0.02
FAIR = 0.9
"""The part of its share from which on no shard is moved to a host any more."""


@pytest.fixture
def network() -> Iterator[CutOff]:
    with namespace() as cut_off:
        if cut_off is None:
            pytest.skip("this machine allows no network namespaces")
        yield cut_off


@pytest.fixture
def store(network: CutOff) -> Iterator[str]:
    """The URL of a database on this side of the network, which the other side reaches too."""
    with PostgresServer.start(also_at=network.here) as server:
        yield server.create_store("ledger")


@contextlib.asynccontextmanager
async def client(
    name: str, host: str, cluster: PlainCluster, folder: Path, within: tuple[str, ...]
) -> AsyncIterator[SteadyClient]:
    """A process with a steady load on both hosts' shards."""
    spec = Spec(
        name=name,
        target=f"tcp://{host}",
        token_file=str(cluster.token_file),
        shards=cluster.settings.shards,
        callers=CALLERS,
        pause_s=0.02,
        timeout_s=PATIENCE_S,
        seed=Luck().first_seed,
    )
    found = await SteadyClient.start(spec, os.environ, folder, within)
    try:
        yield found
    finally:
        await found.stop()


async def both_serve(cluster: PlainCluster) -> list[ShardRow]:
    """Once each has its share: between two rounds of moves nothing is on its way either."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            rows = await cluster.store.shards()
            shares = Counter(row.owner for row in rows)
            if (
                all(row.state is ShardState.OWNED and row.target is None for row in rows)
                and len(shares) == 2
                and min(shares.values()) >= FAIR * len(rows) / 2
            ):
                return rows
            await asyncio.sleep(LOOK_S)


def owners(rows: list[ShardRow]) -> list[tuple[int | None, int]]:
    return [(row.owner, row.epoch) for row in rows]


async def is_reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(0.5):
            _, writer = await asyncio.open_connection(host, int(port))
    except OSError:  # a time-out is one
        return False
    writer.close()
    return True


@pytest.mark.timeout(180)
async def test_a_host_that_is_cut_off_from_all_but_the_store_and_its_own_client(
    network: CutOff, tmp_path: Path
) -> None:
    """S14, S10: for twice its lease. It renews its lease, so nobody takes its shards, and both sides go on with what they
    reach; who asks for the others waits, and is answered after the heal. Nothing is lost, doubled or reordered."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            plain_cluster("ledger:app", "ledger", tmp_path, app_dir=HELPERS, hosts=0)
        )
        near, far = await cluster.start_host(network.here), await cluster.start_host(network.there, network.within)
        before = await both_serve(cluster)
        ours = await stack.enter_async_context(client("T", near.address, cluster, tmp_path, ()))
        theirs = await stack.enter_async_context(client("R", far.address, cluster, tmp_path, network.within))
        await asyncio.gather(ours.tell(begin="r"), theirs.tell(begin="r"))
        await asyncio.gather(ours.tell(more=200), theirs.tell(more=200))

        network.cut()
        over = time.monotonic() + 2 * cluster.settings.lease_s
        assert not await is_reachable(far.address), "the cut did not bite"
        while time.monotonic() < over:
            await asyncio.gather(ours.tell(more=50), theirs.tell(more=50))
        assert owners(await cluster.store.shards()) == owners(before)
        assert {host.state for host in await cluster.store.hosts()} == {HostState.LIVE}

        network.heal()
        files = [tmp_path / "ours.json", tmp_path / "theirs.json"]
        await asyncio.gather(ours.tell(more=200), theirs.tell(more=200))
        await asyncio.gather(ours.tell(end=str(files[0])), theirs.tell(end=str(files[1])))
        await judge(cluster, files)


@pytest.mark.timeout(240)
async def test_a_host_that_is_cut_off_from_its_store_stops_answering_and_is_succeeded(
    network: CutOff, store: str, tmp_path: Path
) -> None:
    """S14, PR15, PR18: on PostgreSQL, which the cut host does not reach either. It commits nothing, and with its lease its
    reads end, while the other host takes its shards over. After the heal it finds itself fenced, and ends: one owner, and
    a history in which nothing is lost, doubled, reordered or stale."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            plain_cluster("ledger:app", "ledger", tmp_path, app_dir=HELPERS, hosts=0, store=store)
        )
        near, far = await cluster.start_host(network.here), await cluster.start_host(network.there, network.within)
        await both_serve(cluster)
        ours = await stack.enter_async_context(client("T", near.address, cluster, tmp_path, ()))
        theirs = await stack.enter_async_context(client("R", far.address, cluster, tmp_path, network.within))
        await asyncio.gather(ours.tell(begin="r"), theirs.tell(begin="r"))
        await asyncio.gather(ours.tell(more=200), theirs.tell(more=200))

        network.cut()
        assert not await is_reachable(far.address), "the cut did not bite"
        async with asyncio.timeout(PATIENCE_S):
            while {row.owner for row in await cluster.store.shards()} != {near.incarnation}:
                await ours.tell(more=10)
        answered = asyncio.ensure_future(theirs.tell(more=1))
        await ours.tell(more=200)
        done, _ = await asyncio.wait({answered}, timeout=2.0)
        assert not done, "a host that is cut off from its store answers on"

        network.heal()
        async with asyncio.timeout(PATIENCE_S):
            assert await far.process.wait() != 0
        files = [tmp_path / "ours.json", tmp_path / "theirs.json"]
        await asyncio.gather(ours.tell(more=200), theirs.tell(more=200), answered)
        await asyncio.gather(ours.tell(end=str(files[0])), theirs.tell(end=str(files[1])))
        await judge(cluster, files)


async def judge(cluster: PlainCluster, files: list[Path]) -> None:
    operations = [
        operation for file in files for operation in msgspec.json.decode(file.read_bytes(), type=list[Operation])
    ]
    assert failures(operations) == []
    async with cluster.connect() as reader:
        assert (await findings_of(operations, reader)).all() == []
