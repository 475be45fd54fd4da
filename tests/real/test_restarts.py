"""Nodes and whole clusters are lost, on real Ray clusters; the store stays."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import three_nodes
from app_under_test import Ledger
from append_load import AppendLoad
from command_line import CommandLine
from running_app import RunningApp
from three_nodes import RayNodes

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


async def test_a_node_killed_under_load_costs_its_entities_a_moment_and_the_others_nothing(
    running: RunningApp, seed: int
) -> None:
    """S04: SIGKILL of a raylet and all its workers: every acknowledged append stands at its index, entities of the lost
    host answer again within a second, no append to a shard of another host takes over 250 ms."""
    before = await asyncio.to_thread(running.whole)
    lost = running.nodes.nodes[2]
    victim = next(host for host in before["hosts"] if host["node"] == lost.node_id)
    others = {host["incarnation"] for host in before["hosts"]} - {victim["incarnation"]}
    script = Path(three_nodes.__file__)
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(1000)
            began = time.monotonic()
            # from another process: looking for the node's processes would hold this one's event loop
            kill = await asyncio.create_subprocess_exec(
                sys.executable, str(script), "kill", str(lost.index), "--folder", str(running.nodes.folder),
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            assert await kill.wait() == 0
            await load.answered(1500)
        assert load.slowest_s({victim["incarnation"]}, began) < 1.0
        assert load.slowest_s(others, began) < 0.25
        await load.check(cluster)
    found = await asyncio.to_thread(running.until, lambda found: found["served"] == found["shards"])
    assert {host["incarnation"] for host in found["hosts"] if host["state"] == "live"} == others


@pytest.mark.parametrize("orderly", [True, False], ids=["stopped", "killed"])
async def test_a_cluster_that_ended_goes_on_from_its_store(tmp_path: Path, seed: int, *, orderly: bool) -> None:
    """S15: the app stopped and its Ray nodes ended, or all of it SIGKILLed under load; on new Ray nodes, started on the
    same store, every entity goes on where it stood."""
    with RayNodes.start(2) as nodes:
        first = CommandLine(tmp_path, nodes.address)
        await asyncio.to_thread(first.start)
        async with RunningApp(nodes, first).connected(hosts=2) as cluster:
            load = AppendLoad(cluster, seed)
            async with load:
                await load.answered(500)
            await load.check(cluster)
        if orderly:
            assert (await asyncio.to_thread(first.run, "stop", "under-test")).stdout == "under-test is stopped\n"
    with RayNodes.start(2) as nodes:
        second = CommandLine(tmp_path, nodes.address)
        await asyncio.to_thread(second.start)
        async with RunningApp(nodes, second).connected(hosts=2) as cluster:
            await load.check(cluster)
            name = load.sent[0].ledger
            entries = await cluster.entity(Ledger, name).read()
            assert await cluster.entity(Ledger, name).append("in the second life") == len(entries)
