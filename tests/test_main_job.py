"""The main job on real Ray nodes, smaller: what `make run` does, and that nothing is left of it however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from three_nodes import MARK, RayNodes, RayNodesError

JOB = Path(__file__).resolve().parents[1] / "examples" / "flights.py"


def _start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The job as a process of its own, its output readable: no colours, and wide enough not to wrap."""
    return subprocess.Popen(
        [sys.executable, str(JOB), *arguments],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "150", "NO_COLOR": "1", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _folder_of(job: subprocess.Popen[str]) -> Path:
    """The folder of the nodes that this job started: their mark, seen on a child that `ray start` left."""
    import psutil

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and job.poll() is None:
        for child in psutil.Process(job.pid).children(recursive=True):
            try:
                mark = child.environ().get(MARK)
            except psutil.Error:
                continue
            if mark:
                return Path(mark.rpartition("#")[0])
        time.sleep(0.02)
    job.kill()
    raise AssertionError(f"the job started no node:\n{job.communicate()[0]}")


def _nothing_is_left(folder: Path) -> None:
    assert RayNodes(folder).processes() == []
    assert not folder.exists()
    with pytest.raises(RayNodesError):
        RayNodes.find(folder)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_replay_survives_the_kill_of_a_node_without_losing_or_doubling_anything(tmp_path: Path) -> None:
    """M01, across a failover: every entity has the totals of the table, and saw its commands in the table's order."""
    job = _start(tmp_path, "--flights", "20000", "--json", "figures.json", "--seed", "7")
    folder = _folder_of(job)
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flights"], figures["commands"], figures["killed"]) == (20_000, 60_000, 1)
    assert (figures["lost"], figures["doubled"], figures["mismatches"]) == (0, 0, 0)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["failover_gap_ms"] > 0
    assert figures["commands_per_s"] == pytest.approx(figures["commands"] / figures["seconds"], rel=0.01)
    _nothing_is_left(folder)


@pytest.mark.real
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_same_replay_on_postgresql(tmp_path: Path) -> None:
    """M01, S03, S04, across a failover on the other store, with a server that the job starts and ends."""
    job = _start(tmp_path, "--store", "postgresql", "--flights", "20000", "--json", "figures.json", "--seed", "7")
    folder = _folder_of(job)
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flights"], figures["commands"], figures["killed"]) == (20_000, 60_000, 1)
    assert (figures["lost"], figures["doubled"], figures["mismatches"]) == (0, 0, 0)
    _nothing_is_left(folder)


@pytest.mark.real
@pytest.mark.timeout(180)
def test_a_job_interrupted_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C when the nodes are there and the app is not: no process, no folder, and an exit code that says so."""
    job = _start(tmp_path)
    folder = _folder_of(job)
    deadline = time.monotonic() + 120
    while len(RayNodes(folder).nodes) < 3:
        assert time.monotonic() < deadline, "the nodes did not start"
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert "hosts are up" not in output
    _nothing_is_left(folder)


@pytest.mark.real
@pytest.mark.timeout(180)
def test_a_job_terminated_amid_the_replay_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM with thousands of commands under way: the same."""
    job = _start(tmp_path, "--no-kill")
    folder = _folder_of(job)
    assert job.stdout is not None
    lines = []
    while not any("hosts are up" in line for line in lines):
        lines.append(job.stdout.readline())
        assert lines[-1], f"the job ended: {lines}"
    store = folder / "store"
    before = _size(store)
    while _size(store) < before + 1_000_000:  # the replay is writing
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert "every aircraft" not in output
    _nothing_is_left(folder)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a log that was let go meanwhile
            total += path.stat().st_size
    return total


def test_what_cannot_be_asked_for_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Exit code 2, and the words of the command line."""
    job = _start(tmp_path, "--flights", "0")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "Invalid value for '--flights'" in output
