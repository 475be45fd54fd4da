"""A running app under test: what the tests ask about it, and do to its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
from command_line import APPS, CommandLine
from three_nodes import RayNodes

import atoll
from atoll.cluster.api import Cluster

LOOK_S = 0.1


class RunningApp:
    """The app under test, started; what the tests ask about it and do to it. Looks through a process of its own, while
    it is entered."""

    def __init__(self, nodes: RayNodes, cli: CommandLine, name: str = "under-test") -> None:
        self.nodes = nodes
        self.cli = cli
        self.name = name
        self._looker: subprocess.Popen[str]
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> Self:
        self._looker = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("looker.py"))],
            env=self.cli.environment,
            cwd=self.cli.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._looker.kill()
        self._looker.communicate()

    def status(self) -> dict[str, Any]:
        """As `atoll status` tells it, whether all is well or not."""
        assert self._looker.stdin is not None
        assert self._looker.stdout is not None
        with self._one_at_a_time:
            self._looker.stdin.write(f"{self.name}\n")
            self._looker.stdin.flush()
            answer = self._looker.stdout.readline()
        assert answer, "the process that looks ended; see its words above"
        found: dict[str, Any] = json.loads(answer)
        assert "error" not in found, found["error"]
        return found

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """The first status that meets the condition."""
        deadline = time.monotonic() + timeout_s
        while not condition(found := self.status()):
            assert time.monotonic() < deadline, found
            time.sleep(LOOK_S)
        return found

    def whole(self, hosts: int = 3) -> dict[str, Any]:
        """Its status once every shard is served and every node has a living host."""
        return self.until(
            lambda found: (
                found["coordinator"]
                and not found["problem"]
                and found["served"] == found["shards"] > 0
                and [host["state"] for host in found["hosts"]] == ["live"] * hosts
            )
        )

    def driver(self, entity: str, value: str) -> dict[str, Any]:
        """What `client_in_ray.py` prints."""
        run = subprocess.run(
            [sys.executable, str(APPS / "client_in_ray.py"), entity, value],
            env={**self.cli.environment, "PYTHONPATH": str(APPS)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return found

    def coordinator(self) -> psutil.Process:
        (found,) = actor_processes(self.nodes, "CoordinatorActor")
        return found

    @contextlib.asynccontextmanager
    async def connected(self, hosts: int = 3) -> AsyncIterator[Cluster]:
        """A client in this process, which knows nothing of Ray."""
        found = await asyncio.to_thread(self.whole, hosts)
        async with atoll.connect(found["url"], token_file=found["token_file"]) as cluster:
            yield cluster


def actor_processes(nodes: RayNodes, actor: str) -> list[psutil.Process]:
    """Processes of Ray actors of that class, as Ray titles them."""
    found = []
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(f"ray::{actor}"):
                found.append(process)
    return found


def until_gone(pids: list[int], timeout_s: float = 60.0) -> None:
    """Return once these processes have ended; a zombie has."""
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"{process} still runs"
                time.sleep(0.02)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """The process does nothing for as long as this is entered."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
