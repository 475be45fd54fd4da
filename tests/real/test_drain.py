"""Nodes join, are drained by hand and by Ray, get a shard pinned, and hosts get a SIGTERM: on a real Ray cluster of three nodes, under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from app_under_test import Gate
from append_load import SOON_S, AppendLoad
from command_line import CommandLine
from running_app import RunningApp, actor_processes, until_gone
from three_nodes import Node

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


def by_node(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host["node"]: host for host in found["hosts"]}


def node_of(running: RunningApp, index: int) -> Node:
    return next(node for node in running.nodes.nodes if node.index == index)


def shares_are_even(found: dict[str, Any], hosts: int) -> bool:
    shares = [host["shards"] for host in found["hosts"] if host["state"] == "live"]
    return len(shares) == hosts and sum(shares) == found["shards"] and max(shares) - min(shares) <= 1


async def test_a_drained_node_is_emptied_without_an_error_and_stays_empty(running: RunningApp, seed: int) -> None:
    """S07: `atoll drain` under load returns when the node serves nothing; every append stands at its index, none waited
    for long; the host stays, empty, also with a coordinator that was restarted meanwhile; what was asked for is
    done although that happens; `--undo` brings its share back."""
    cli = running.cli
    drained = node_of(running, 1)
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(300)
            began = time.monotonic()
            coordinator = await asyncio.to_thread(running.coordinator)
            draining = cli.begin("drain", drained.node_id[:16])
            await load.answered(50)
            coordinator.kill()
            output, errors = await asyncio.to_thread(draining.communicate, timeout=60)
            assert (draining.returncode, errors) == (0, ""), output
            assert output.startswith(f"node {drained.node_id[:12]} (")
            found = await asyncio.to_thread(running.status)
            host = by_node(found)[drained.node_id]
            assert (host["state"], host["shards"]) == ("draining", 0)
            assert found["served"] == found["shards"]
            await load.answered(300)
            slowest = load.slowest_s({host["incarnation"] for host in found["hosts"]}, began)
            assert slowest < SOON_S, f"seed {seed}: slowest append {slowest * 1000:.0f} ms"
            undone = await asyncio.to_thread(cli.run, "drain", drained.node_id[:16], "--undo")
            assert undone.returncode == 0, undone.stderr
            await asyncio.to_thread(running.until, lambda found: shares_are_even(found, 3))
        await load.check(cluster)


@pytest.mark.soak
async def test_a_pinned_shard_has_its_node_for_itself_and_its_host_is_killed(running: RunningApp, seed: int) -> None:
    """S03, S11: `atoll pin` under load returns when the shard is alone on the named node; no append waited for long. Its
    host is killed: it is served elsewhere at once, and alone on its node again with the next host there. Every append
    stands at its index. Unpinned, all have their share."""
    cli, node = running.cli, node_of(running, 2)
    before = await asyncio.to_thread(running.whole)
    victim = by_node(before)[node.node_id]
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(100)
            began = time.monotonic()
            arguments = ("pin", running.name, "Ledger", "a hot one", "--node", node.node_id[:16])
            pinned = await asyncio.to_thread(cli.asked, *arguments)
            assert (pinned["alone"], pinned["at"], pinned["host"]) == (True, node.node_id, victim["incarnation"])
            slowest = load.slowest_s({host["incarnation"] for host in before["hosts"]}, began)
            assert slowest < SOON_S, f"seed {seed}: slowest append {slowest * 1000:.0f} ms"
            os.kill(victim["pid"], signal.SIGKILL)
            again = await asyncio.to_thread(running.until, lambda found: pin_is_kept(found, victim["incarnation"]))
            assert again["pins"][0]["at"] == node.node_id
            await load.answered(100)
            undone = await asyncio.to_thread(cli.run, "unpin", running.name, "Ledger", "a hot one")
            assert undone.returncode == 0, undone.stderr
            await asyncio.to_thread(running.until, lambda found: shares_are_even(found, 3) and not found["pins"])
        await load.check(cluster)


def pin_is_kept(found: dict[str, Any], dead: int) -> bool:
    return bool(found["pins"]) and found["pins"][0]["alone"] and found["pins"][0]["host"] != dead


def test_what_cannot_be_drained_is_refused_in_one_line(running: RunningApp, cli: CommandLine) -> None:
    """A node that is not there, a name of several nodes: exit code 1, the nodes are listed, nothing drains."""
    running.whole()
    listed = [node.node_id[:12] for node in running.nodes.nodes]
    unknown = cli.refused("drain", "f" * 56)
    assert unknown.startswith("no node of this Ray cluster is 'ffff")
    several = cli.refused("drain", running.nodes.address.rpartition(":")[0])
    assert "means 3 nodes, name one by its ID" in several
    assert all(name in unknown and name in several for name in listed)
    assert {host["state"] for host in running.status()["hosts"]} == {"live"}


def test_what_cannot_be_pinned_is_refused_in_one_line(running: RunningApp, cli: CommandLine) -> None:
    """S11: by the coordinator, and for an entity by what the hosts say that they have: exit code 1, nothing is pinned."""
    assert cli.refused("pin", running.name, "--shard", "256") == (
        "'under-test': shard 256 does not exist: there are shards 0 to 255"
    )
    said = cli.refused("pin", running.name, "Leger", "a hot one")
    assert said.startswith("'under-test' has no kind 'Leger'; it has ")
    assert running.status()["pins"] == []


def test_only_nodes_with_what_the_app_requires_get_hosts(running: RunningApp, cli: CommandLine) -> None:
    """One host, on the only node that has it; that node is not drained, since nobody could take its shards over."""
    running.whole()
    head = node_of(running, 0)
    started = cli.start("app_under_test:picky")
    try:
        assert [host["node"] for host in started["hosts"]] == [head.node_id]
        assert started["served"] == started["shards"]
        said = cli.refused("drain", head.node_id)
        assert said == "'picky': no other host could take its shards over, let a node join first"
        assert [host["state"] for host in cli.asked("status", "picky")["hosts"]] == ["live"]
    finally:
        cli.run("stop", "picky")
        cli.run("drain", head.node_id, "--undo")


async def test_a_node_that_joins_gets_a_host_and_one_that_ray_drains_leaves_without_an_error(
    running: RunningApp, seed: int
) -> None:
    """S02, S07: a fourth node joins under load and has its share within seconds; then Ray says that it goes (a preemption
    notice): its shards move away, its host is ended, and Ray lets go of the node. No append fails or waits for long."""
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed, workers=8) as load:
            await load.answered(100)
            began = time.monotonic()
            joined = await asyncio.to_thread(running.nodes.add)
            found = await asyncio.to_thread(running.until, lambda found: shares_are_even(found, 4))
            await load.answered(200)
            await asyncio.to_thread(preempt, running.nodes.address, joined.node_id)
            found = await asyncio.to_thread(running.until, lambda found: joined.node_id not in by_node(found))
            assert shares_are_even(await asyncio.to_thread(running.whole), 3), found
            await load.answered(200)
            slowest = max(sent.took_s(time.monotonic()) for sent in load.sent if sent.ended >= began)
            assert slowest < SOON_S, f"seed {seed}: slowest append {slowest * 1000:.0f} ms"
        await load.check(cluster)
    until_gone([joined.raylet_pid])


def preempt(address: str, node_id: str) -> None:
    """As a cloud's preemption notice reaches Ray."""
    ray = Path(sys.executable).with_name("ray")
    arguments = [
        ray, "drain-node", "--address", address, "--node-id", node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "for a test", "--deadline-remaining-seconds", "60",
    ]  # fmt: skip
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)


async def test_a_host_that_gets_a_sigterm_loses_nothing(running: RunningApp, seed: int) -> None:
    """S03: signals of a Ray actor are Ray's: its end is a crash, which is safe. Every append stands at its index, and a
    new incarnation takes its place."""
    before = await asyncio.to_thread(running.whole)
    victim = max(before["hosts"], key=lambda host: host["shards"])
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(300)
            os.kill(victim["pid"], signal.SIGTERM)
            await asyncio.to_thread(until_gone, [victim["pid"]])
            await load.answered(500)
        await load.check(cluster)
    after = await asyncio.to_thread(running.whole)
    assert victim["incarnation"] not in [host["incarnation"] for host in after["hosts"]]
    assert len(actor_processes(running.nodes, "HostActor")) == 3


async def test_stopping_lets_turns_end_and_leaves_what_was_accepted_in_the_store(
    running: RunningApp, cli: CommandLine, seed: int
) -> None:
    """`atoll stop` waits for the turn that runs, gives its shard back, and says what is left; the next start does it."""
    gate = cli.folder / f"open-{seed}"
    async with running.connected() as cluster:
        for _ in range(5):
            await cluster.entity(Gate, f"gate-{seed}").wait_for.tell(str(gate))
        stop = cli.begin("stop", running.name)
        await asyncio.to_thread(running.until, lambda found: found["served"] < found["shards"])
        gate.touch()
    output, errors = await asyncio.to_thread(stop.communicate, timeout=60)
    assert (output, errors) == ("under-test is stopped\n  left in its store  4 commands\n", "")
    await asyncio.to_thread(cli.start)
    async with running.connected() as cluster, asyncio.timeout(60):
        while await cluster.entity(Gate, f"gate-{seed}").count() < 5:  # noqa: ASYNC110 - the host says nothing by itself
            await asyncio.sleep(0.05)
