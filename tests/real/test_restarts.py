"""Nodes and whole clusters are lost, on real Ray clusters; the store stays."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import three_nodes
from append_load import SOON_S, UNNOTICED_S, AppendLoad
from command_line import CommandLine
from running_app import RunningApp
from three_nodes import RayNodes

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    """Of this module alone: one of them is killed."""
    with RayNodes.start(3) as nodes:
        yield nodes


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


async def test_a_node_killed_under_load_costs_its_entities_a_moment_and_the_others_nothing(
    running: RunningApp, seed: int
) -> None:
    """S04: SIGKILL of a raylet and all its workers: every acknowledged append stands at its index, entities of the lost
    host answer again without a wait for its lease, and those of other hosts all the time."""
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
        touched, untouched = load.slowest_s({victim["incarnation"]}, began), load.slowest_s(others, began)
        told = f"seed {seed}: slowest append {touched * 1000:.0f} ms, elsewhere {untouched * 1000:.0f} ms"
        assert touched < SOON_S, told
        assert untouched < UNNOTICED_S, told
        await load.check(cluster)
    found = await asyncio.to_thread(running.until, lambda found: found["served"] == found["shards"])
    assert {host["incarnation"] for host in found["hosts"] if host["state"] == "live"} == others


async def test_a_cluster_that_ended_goes_on_from_its_store(tmp_path: Path, seed: int) -> None:
    """S15: all of it SIGKILLed, and then the app stopped and its Ray nodes ended: each time, on new Ray nodes, as many or
    not, started on the same store, every entity goes on where it stood."""
    lives: list[AppendLoad] = []
    for life, count in (("killed", 2), ("stopped", 1), ("last", 1)):
        with RayNodes.start(count) as nodes:  # whatever still runs on them is SIGKILLed in the end
            cli = CommandLine(tmp_path, nodes.address)
            await asyncio.to_thread(cli.start)
            with RunningApp(nodes, cli) as running:
                async with running.connected(hosts=count) as cluster:
                    for load in lives:
                        await load.check(cluster)
                    if life == "last":
                        break
                    lives.append(AppendLoad(cluster, seed + len(lives), ledgers=100))
                    async with lives[-1] as load:
                        await load.answered(500)
            if life == "stopped":
                run = await asyncio.to_thread(cli.run, "stop", "under-test")
                assert run.stdout == "under-test is stopped\n", run.stderr
