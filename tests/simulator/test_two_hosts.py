"""The smallest cluster story, scripted: two hosts, one is killed, another one starts; the clock is virtual."""

from __future__ import annotations

import asyncio

import pytest
from ledger import Journal, List
from sim_cluster import SETTINGS, SimCluster
from simulator.simulation import Simulation

import atoll

TOKENS = 40


async def story(cluster: SimCluster, fault: str = "kill") -> tuple[list[list[str]], list[float]]:
    """Append to both kinds throughout; return what stands there in the end, and how long each append took."""
    loop = asyncio.get_running_loop()
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=2)
    first = await cluster.start_host()
    await cluster.start_host()
    client = await cluster.client("X")
    refs = [client.entity(kind, f"e{i}") for kind in (List, Journal) for i in range(4)]
    took = []
    for number in range(TOKENS):
        if number == TOKENS // 2:
            if fault == "vanish":
                cluster.simulation.network.vanish(cluster.hosts[first])
            else:
                cluster.hosts[first].kill()
        if number == TOKENS * 3 // 4:
            await cluster.start_host()
        began = loop.time()
        positions = await asyncio.gather(*(ref.append(f"{number}") for ref in refs))
        took.append(loop.time() - began)
        assert positions == [number] * len(refs)
    return [await ref.read() for ref in refs], took


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_host_is_succeeded_within_a_second_and_nothing_is_lost(seed: int) -> None:
    """S03, M01, J12: every append stands once and in order, also across the kill, which costs less than a second."""
    with Simulation(seed) as simulation:
        found, took = simulation.run(story(SimCluster(simulation, faults=0.0)))
    assert found == [[str(number) for number in range(TOKENS)]] * 8
    assert max(took) < 1.0
    assert took[TOKENS // 2] > 4 * sorted(took)[TOKENS // 2], "the kill was not felt: it did not bite"


@pytest.mark.parametrize("seed", range(3))
def test_a_machine_that_vanishes_without_a_word_is_succeeded_within_its_lease_and_a_second(seed: int) -> None:
    """S04, PR14, PR16: nothing refuses and nothing closes, so only the lease tells; nothing is lost."""
    with Simulation(seed) as simulation:
        cluster = SimCluster(simulation, faults=0.0)
        found, took = simulation.run(story(cluster, "vanish"))
    assert found == [[str(number) for number in range(TOKENS)]] * 8
    assert 1.0 < max(took) < cluster.settings.lease_s + 1.0


def test_the_same_seed_is_the_same_story() -> None:
    """A failure found on virtual time can be replayed: every delivery of a whole cluster is the same again."""
    traces = []
    for _ in range(2):
        with Simulation("again") as simulation:
            simulation.run(story(SimCluster(simulation)))
            traces.append(simulation.network.trace())
    assert traces[0] == traces[1]


async def leave_a_log_behind(cluster: SimCluster) -> tuple[int, int]:
    """A host gives everything back and ends; return how many rows its log had then, and has later."""
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=1)
    first = await cluster.start_host()
    client = await cluster.client("X")
    for number in range(20):
        await client.entity(List, f"e{number}").append("x")
    cluster.coordinator.kill()
    host = cluster.running[first].host
    await cluster.hosts[first].run(host.stop())
    rows = len(await cluster.store.read_log(first))
    cluster.hosts[first].kill()
    await cluster.start_host()
    cluster.start_coordinator()
    await asyncio.sleep(30)
    return rows, len(await cluster.store.read_log(first))


def test_the_log_of_a_host_that_left_in_good_order_is_emptied() -> None:
    """J16, PR04: rows that every shard is past are deleted also when nobody had to take anything over."""
    seldom = {**SETTINGS, "shards": 1, "checkpoint_s": 600.0, "checkpoint_commands": 10_000}
    app = atoll.App("chaos", entities=[List], settings=seldom)
    with Simulation("left") as simulation:
        rows, left = simulation.run(leave_a_log_behind(SimCluster(simulation, faults=0.0, app=app)))
    assert rows > 1
    assert left == 1
