"""A cluster that changes and breaks while two clients use it, one inside Ray and one without: one fault after the other,
each seen to bite, and the history of the clients checked after each. `make chaos` runs them at random.

On SQLite in detail; on PostgreSQL each kind of fault once, and those of the server itself. The soak tests run on both."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import pytest_asyncio
from chaos import (
    FAULTS,
    FAULTS_OF_POSTGRES,
    GCS_SURVIVES,
    LEASE_S,
    PATIENCE_S,
    SHARDS,
    Bite,
    Chaos,
    Fault,
    StoreKind,
)
from chaos import running as running_chaos
from ledger import List
from luck import Luck
from steady_client import entity_in

import atoll
from atoll.sharding.table import Route

pytestmark = [pytest.mark.real, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

GAP_MAX_S = 30.0
"""What anybody may wait here, beside other tests on a small machine. The rows' own bounds are those of the soak tests."""
PAUSE_S = 0.1
"""Of a steady caller: the load leaves the machine room to start nodes. It is part of every gap."""
on_sqlite = pytest.mark.parametrize("chaos", [StoreKind.SQLITE], indirect=True)
on_postgresql = pytest.mark.parametrize("chaos", [StoreKind.POSTGRESQL], indirect=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(StoreKind))
async def chaos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chaos]:
    """Two nodes at first. Every fault leaves the cluster whole, with the nodes that are there then."""
    folder, seed = tmp_path_factory.mktemp("chaos"), Luck().first_seed
    async with running_chaos(folder, seed, nodes=2, pause_s=PAUSE_S, store=request.param) as found:
        yield found


def nothing_went_wrong(fault: Fault) -> None:
    assert fault.bite.bit, f"{fault.name} did not bite: {fault.bite.told}"
    assert not fault.findings.all(), f"{fault.name}: {fault.findings.all()[:5]}"
    assert not fault.bite.broken, f"{fault.name}: {fault.bite.broken}"
    assert not fault.failed, f"{fault.name}: {len(fault.failed)} of {fault.operations} failed: {fault.failed[:5]}"
    assert 0 < fault.gap_s < GAP_MAX_S, fault.name


async def all_agree_on_the_table(chaos: Chaos) -> None:
    """Both clients, and every host: what it tells a client that knows nobody else."""
    facts = await chaos.whole()
    owners = [facts.owners()[shard] for shard in range(SHARDS)]
    async with asyncio.timeout(PATIENCE_S):
        for process in (chaos.load.inside, chaos.load.outside):
            while await process.owners() != owners:  # noqa: ASYNC110 - another process is asked
                await asyncio.sleep(0.02)
        for host in facts.hosts.values():
            async with atoll.connect(f"tcp://{host.address}", token_file=chaos.token_file) as cluster:
                client = cluster.client
                while [_incarnation(client.route(n)) for n in range(SHARDS)] != owners:  # noqa: ASYNC110 - a table
                    await asyncio.sleep(0.02)


def _incarnation(route: Route | None) -> int | None:
    return None if route is None else route.incarnation


@on_sqlite
async def test_two_nodes_join_under_load_and_get_their_share(chaos: Chaos) -> None:
    """S02: a third and a fourth node: their hosts hold their share within 10 %, no command fails meanwhile, and all agree
    on who owns what afterwards."""
    before = await chaos.whole()
    nothing_went_wrong(await chaos.inflict("joins"))
    after = await chaos.whole()
    assert len(after.hosts) == len(before.hosts) + 2
    shares = [len(after.of(incarnation)) * len(after.hosts) / SHARDS for incarnation in after.hosts]
    assert all(0.9 <= share <= 1.1 for share in shares), shares
    await all_agree_on_the_table(chaos)


@on_sqlite
async def test_a_host_is_drained_while_a_handler_of_it_runs(chaos: Chaos) -> None:
    """S07: no command fails, nothing is lost, and a turn that takes long ends, once, before its shard is handed over."""

    async def drain() -> Bite:
        facts = await chaos.facts()
        victim = chaos.victim(facts)
        shard = min(facts.of(victim.incarnation))
        async with chaos.connected() as cluster:
            entity = cluster.entity(List, entity_in(shard, SHARDS, "slow"))
            neighbour = cluster.entity(List, entity_in(shard, SHARDS, "slow's neighbour"))
            slow = asyncio.create_task(entity.append_slowly("slow", 1.5))
            await asyncio.sleep(0)  # it is sent
            assert await neighbour.append("behind it") == 0  # commands of a client to one shard arrive in order
            draining = asyncio.create_task(chaos.drain(victim))
            assert await slow == 0
            bite = await draining
            assert await entity.read() == ["slow"]
        return bite

    nothing_went_wrong(await chaos.inflict("drain", drain))


@on_sqlite
async def test_the_coordinator_is_killed_amid_moves(chaos: Chaos) -> None:
    """S06: SIGKILL while a drain is under way: no command fails, the moves end when Ray has made another coordinator,
    every shard is owned."""
    nothing_went_wrong(await chaos.inflict("coordinator killed amid moves"))


@on_sqlite
async def test_a_host_stands_still_beyond_its_lease_under_load(chaos: Chaos) -> None:
    """S05: SIGSTOP, then SIGCONT once others serve what it had: it was ended by its successor or had its writes refused,
    no read is stale, and nothing is lost, doubled or reordered."""
    nothing_went_wrong(await chaos.inflict("host stopped"))


@on_sqlite
async def test_a_node_is_killed_under_load(chaos: Chaos) -> None:
    """S04: SIGKILL of a raylet and all its workers: nothing is lost, no command fails. (`make chaos` brings it back.)"""
    nothing_went_wrong(await chaos.inflict("node killed", partial(chaos.kill_node, again=False)))


@on_sqlite
@pytest.mark.skipif(not GCS_SURVIVES, reason="this version of Ray cannot restart its GCS without more software")
async def test_the_gcs_is_killed_and_comes_back(chaos: Chaos) -> None:
    """R06: with a storage that survives (RocksDB): commands are answered while there is none, and none fails; afterwards
    drivers and the coordinator ask it as before."""
    nothing_went_wrong(await chaos.inflict("GCS killed"))


@on_sqlite
async def test_two_nodes_join_while_one_leaves(chaos: Chaos) -> None:
    """S12: no command fails; shards move as often as they must, and none is without an owner for long."""
    before = await chaos.whole()
    fault = await chaos.inflict("joins and a leave at once")
    nothing_went_wrong(fault)
    assert len((await chaos.whole()).hosts) == len(before.hosts) + 1
    assert fault.moves <= 2 * SHARDS, "each shard moves once or twice, not to and fro"
    assert fault.unowned_s < GAP_MAX_S


# ---- on PostgreSQL

SHORT: dict[str, Callable[[Chaos], Awaitable[Bite]]] = {
    "joins": lambda chaos: chaos.join(1),
    "drain": FAULTS["drain"],
    "coordinator killed amid moves": FAULTS["coordinator killed amid moves"],
    "host killed": FAULTS["host killed"],
    "host stopped": FAULTS["host stopped"],
    "PostgreSQL killed": lambda chaos: chaos.kill_postgres(2.0),
    "PostgreSQL stopped": lambda chaos: chaos.stop_postgres(1.5 * LEASE_S),
    "node killed": lambda chaos: chaos.kill_node(again=False),
}


@on_postgresql
@pytest.mark.parametrize("name", SHORT)
async def test_one_fault_of_each_kind_on_postgresql(chaos: Chaos, name: str) -> None:
    """S02, S03, S04, S05, S06, S07, R01: no command fails, and nothing is lost, doubled, reordered or stale. While the
    server is killed, or stands still for longer than the leases, commands wait; nobody is condemned for it."""
    nothing_went_wrong(await chaos.inflict(name, partial(SHORT[name], chaos)))


# ---- the same for longer

BOUNDS_S = {
    "host killed": 1.0,
    "host stopped": LEASE_S + 1.0,
    "node killed": 1.0,
    "coordinator killed": 0.25,
    "coordinator killed amid moves": 1.0,
    "drain": 1.0,
    "joins": 1.0,
    "joins and a leave at once": 1.0,
}
"""What a steady caller waits at most, in the median of the rounds: of the rows, on a machine that does nothing else."""
BACK_S = 5.0
"""After an outage of the store every caller is answered again."""


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(BOUNDS_S))
async def test_one_kind_of_fault_for_a_minute(chaos: Chaos, name: str) -> None:
    """S02, S03, S04, S05, S06, S07, S12: again and again under load, within the bound of its row."""
    end = time.monotonic() + float(os.environ.get("SOAK_S", "60"))
    gaps = []
    while time.monotonic() < end:
        fault = await chaos.inflict(name)
        nothing_went_wrong(fault)
        gaps.append(fault.gap_s)
        while len((await chaos.whole()).hosts) > 3:
            nothing_went_wrong(await chaos.inflict("leave"))
    assert statistics.median(gaps) <= BOUNDS_S[name] + PAUSE_S, gaps


@pytest.mark.soak
@pytest.mark.timeout(900)
@on_postgresql
@pytest.mark.parametrize("name", FAULTS_OF_POSTGRES)
async def test_postgresql_is_away_again_and_again(chaos: Chaos, name: str) -> None:
    """R01: for longer than leases, statements and lanes wait; callers wait for it and little longer, and none fails."""
    end = time.monotonic() + float(os.environ.get("SOAK_S", "60"))
    while time.monotonic() < end:
        done = await chaos.inflict(name)
        nothing_went_wrong(done)
        assert done.gap_s < done.bite.away_s + BACK_S, done.bite.told


@pytest.mark.soak
@pytest.mark.skipif(not GCS_SURVIVES, reason="this version of Ray cannot restart its GCS without more software")
async def test_there_is_no_gcs_for_half_a_minute(chaos: Chaos) -> None:
    """R06: commands flow all the time; afterwards a host that is killed is replaced, which takes a GCS."""
    fault = await chaos.inflict("GCS killed", partial(chaos.kill_gcs, 30.0))
    nothing_went_wrong(fault)
    assert fault.gap_s <= 0.25 + PAUSE_S
    nothing_went_wrong(await chaos.inflict("host killed"))


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_node_comes_and_goes_for_five_minutes(chaos: Chaos) -> None:
    """S02, S07: it joins, gets its share, is drained and leaves, again and again, and no command fails."""
    end = time.monotonic() + float(os.environ.get("SOAK_S", "300"))
    while time.monotonic() < end:
        nothing_went_wrong(await chaos.inflict("come and go"))


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_all_kinds_of_faults_at_random_for_minutes(chaos: Chaos) -> None:
    """S02, S03, S04, S05, S06, S07, S12: each bites, and nothing is lost, doubled, reordered or stale."""
    await chaos.mix(float(os.environ.get("SOAK_S", "180")) / 60, print)
    assert chaos.wrong() == []
