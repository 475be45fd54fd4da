"""The script that starts real Ray nodes on this machine, and above all ends them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import three_nodes
from three_nodes import MARK, RayNodes, RayNodesError

SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "three_nodes.py"

ACTORS = """
import os, subprocess, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
class Holder:
    def hold(self):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        return os.getpid(), child.pid, os.nice(0)

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
nodes = [node["NodeID"] for node in ray.nodes()]
holders = [
    Holder.options(
        name=node, lifetime="detached", scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    ).remote()
    for node in nodes
]
for node, held in zip(nodes, ray.get([holder.hold.remote() for holder in holders])):
    print("held", node, *held)
"""


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.real
def test_a_killed_node_takes_all_it_runs_with_it_and_stopping_leaves_nothing() -> None:
    """Workers and their children die with their node, others do not; in the end no process and no folder is left."""
    with RayNodes.start(2) as nodes:
        assert [node.index for node in nodes.nodes] == [0, 1]
        run = subprocess.run(
            [sys.executable, "-c", ACTORS, nodes.address], capture_output=True, text=True, timeout=90, check=True
        )
        holders = {}
        for line in run.stdout.splitlines():
            if not line.startswith("held "):
                continue  # Ray's own words
            _, node_id, worker, child, nice = line.split()
            holders[node_id] = (int(worker), int(child))
            assert int(nice) == 0, "workers of these nodes run at normal priority"
        assert holders.keys() == {node.node_id for node in nodes.nodes}

        head, other = nodes.nodes
        killed = nodes.kill(1)
        assert {other.raylet_pid, *holders[other.node_id]} <= set(killed)
        assert all(map(_ended, killed))
        assert not other.alive
        assert head.alive
        assert not any(map(_ended, holders[head.node_id]))
        with pytest.raises(RayNodesError, match="no running node 1"):
            nodes.kill(1)

        added = nodes.add()
        assert added.index == 2
        assert RayNodes.find(nodes.folder).nodes == nodes.nodes
        everything = [process.pid for process in nodes.processes()]
        assert {head.raylet_pid, added.raylet_pid, *holders[head.node_id]} <= set(everything)
    assert all(map(_ended, everything))
    assert not nodes.folder.exists()
    nodes.stop()  # again: nothing to do


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of Ray's own output is in the message, and the folder is gone."""
    deep = tmp_path / ("deep" * 20)  # too long for Ray's sockets
    deep.mkdir()
    monkeypatch.setattr(three_nodes, "_short_temporary_folder", lambda: str(deep))
    with pytest.raises(RayNodesError, match=r"(?s)node 0 did not start.*path length"):
        RayNodes.start(1)
    assert list(deep.iterdir()) == []


def test_only_processes_with_our_mark_are_taken_for_ours(tmp_path: Path) -> None:
    """A process that merely runs on the same machine is never touched."""
    program = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    environments = (
        {**os.environ, MARK: f"{tmp_path}#0"},
        {**os.environ, MARK: f"{tmp_path}-other#0"},
        dict(os.environ),
    )
    running = [
        subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for environment in environments
    ]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        nodes = RayNodes(tmp_path)
        assert [process.pid for process in nodes.processes()] == [running[0].pid]
        nodes.stop()
        assert running[0].wait(timeout=10) != 0
        assert [process.poll() for process in running[1:]] == [None, None]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_the_command_line_says_what_is_missing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "show", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.strip() == "error: no cluster to work on; none runs: start one first"
