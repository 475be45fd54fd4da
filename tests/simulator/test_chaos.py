"""Real hosts, coordinators and clients on virtual time, under faults drawn from a seed."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from ledger import History, Journal, List
from sim_cluster import SimCluster, nemesis
from simulator.simulation import Simulation

METHODS = ("append", "append", "append", "append_if_even", "append_and_fail", "append_slowly")


async def workload(cluster: SimCluster, history: History, name: str, luck: random.Random, commands: int) -> None:
    client = await cluster.client(name)
    entities = [(kind, f"e{i}") for kind in (List, Journal) for i in range(4)]
    tasks = []
    for number in range(commands):
        kind, id = luck.choice(entities)
        entity = f"{kind.__name__}/{id}"
        ref = client.entity(kind, id)
        if luck.random() < 0.15:
            work = history.read(entity, ref)
        elif luck.random() < 0.15:
            work = history.append_until_known(entity, ref, f"{name}.{number}")
        else:
            method = luck.choice(METHODS)
            args = (luck.uniform(0, 0.3),) if method == "append_slowly" else ()
            work = history.append(entity, ref, f"{name}.{number}", name, method, *args)
        tasks.append(asyncio.ensure_future(work))
        if luck.random() < 0.3:
            await asyncio.sleep(luck.uniform(0, 0.5))
    await asyncio.gather(*tasks)
    await client.client.close()


async def chaos(cluster: SimCluster, seed: Any, *, seconds: float = 20.0, commands: int = 120) -> None:
    luck = random.Random(f"{seed}/chaos")
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=2)
    await cluster.start_host()
    await cluster.start_host()
    history = History()
    work = [
        asyncio.ensure_future(workload(cluster, history, name, random.Random(f"{seed}/{name}"), commands))
        for name in ("X", "Y")
    ]
    faults = await nemesis(cluster, luck, seconds)
    assert faults > 3
    for process in cluster.hosts.values():
        process.resume()
    await cluster.start_host()
    await asyncio.gather(*work)
    reader = await cluster.client("reader")
    final = {}
    for kind in (List, Journal):
        for i in range(4):
            final[f"{kind.__name__}/e{i}"] = await reader.entity(kind, f"e{i}").read()
    assert len(history.acknowledged) > commands / 4
    history.check(final)


@pytest.mark.parametrize("seed", range(int(os.environ.get("CHAOS_SEEDS", "12"))))
def test_everything_acknowledged_stands_once_and_in_order_under_random_faults(seed: int) -> None:
    """M01, M02, M15, M19, J05, J16, S09, S10, PR01, PR06, PR08, PR10, PR11, PR15, PR17, PR21, PR22: whatever is killed,
    stopped, continued or handed over, no append is lost, doubled or reordered, and no read is stale."""
    with Simulation(f"chaos-{seed}") as simulation:
        simulation.run(chaos(SimCluster(simulation), seed))
