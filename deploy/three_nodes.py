"""Several Ray nodes on this machine, started with the ordinary `ray start`, for trying things out and for tests.

    python deploy/three_nodes.py start            a head and two more nodes; prints the address and every raylet's pid
    python deploy/three_nodes.py show
    python deploy/three_nodes.py kill 2           SIGKILL node 2: its raylet and everything that runs under it
    python deploy/three_nodes.py stop             end what `start` began, and remove its temporary folder

or, from Python, `with RayNodes.start() as nodes: ... nodes.kill(2)`.

Rules:
- Nothing is shared with another Ray on the machine: the head takes a free port, all files lie in one temporary folder.
- A process is ours when it carries our mark in its environment, names our folder in its arguments (or, a Ray worker,
  has a file open in it), or descends from one that does. Only such processes are ever signalled. There is no state
  file that could lie after a crash.
- Nodes start one after another: two at once on one address wait for each other until both time out.

It knows nothing of Atoll.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import psutil
import typer
from free_ports import free_ports

MARK = "ATOLL_RAY_NODE"
"""Environment variable `<folder>#<index>` that every process of a node inherits."""
FOLDER_PREFIX = "atoll-ray-"
"""Short on purpose: Ray's Unix sockets lie below the folder, and their paths may have 107 bytes."""
OBJECT_STORE_BYTES = 80_000_000
"""Atoll puts nothing into the object store; Ray's least is 75 MB."""
START_TIMEOUT_S = 90.0
"""For one node. About 4 s on an idle machine; a busy one of two cores has been seen to take 20 s."""
END_TIMEOUT_S = 30.0
"""After SIGKILL: a tenth of a second, unless the machine is busy."""


class RayNodesError(Exception):
    """Starting, finding or ending the nodes failed; the message says what to do."""


@dataclass(frozen=True)
class Node:
    """One Ray node. Index 0 is the head."""

    index: int
    raylet_pid: int
    node_id: str
    """As `ray.nodes()` names it, in hexadecimal."""

    @property
    def head(self) -> bool:
        return self.index == 0

    @property
    def alive(self) -> bool:
        return _running(self.raylet_pid)


class RayNodes:
    """The nodes of one small cluster. `start` makes one, `find` attaches to one that runs, `stop` ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0

    # ---- life

    @classmethod
    def start(cls, count: int = 3, *, environment: Mapping[str, str] | None = None) -> RayNodes:
        """Start `count` nodes, the head first, and return when all have joined.

        `environment` is added to what the nodes inherit (Ray's settings, `RAY_...`). Raises `RayNodesError` with the
        end of Ray's own output when a node does not come up; nothing is left running then.
        """
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=_short_temporary_folder()))
        nodes = cls(folder)
        try:
            for _ in range(count):
                nodes.add(environment=environment)
        except BaseException:
            nodes.stop()
            raise
        return nodes

    @classmethod
    def find(cls, folder: Path | None = None) -> RayNodes:
        """Return the running cluster in `folder`, or the only one there is on this machine."""
        running = {Path(mark.rsplit("#", 1)[0]) for _, mark in _marked()}
        if folder is not None:
            running &= {folder}
        if len(running) != 1:
            names = ", ".join(str(path) for path in sorted(running))
            advice = f"several run, name one with --folder: {names}" if running else "none runs: start one first"
            raise RayNodesError(f"no cluster to work on; {advice}")
        nodes = cls(running.pop())
        nodes._started = 1 + max((node.index for node in nodes.nodes), default=-1)
        return nodes

    def add(self, *, environment: Mapping[str, str] | None = None) -> Node:
        """Start one more node, the first one as the head, and return it when it has joined."""
        index = self._started
        arguments = [str(Path(sys.executable).with_name("ray")), "start", *_ray_options()]
        if index == 0:
            arguments += ["--head", "--port=0", f"--temp-dir={self.folder}", "--include-dashboard=false"]
            if importlib.util.find_spec("grpc") is not None:  # only then does Ray start its client server, on 10001
                arguments.append(f"--ray-client-server-port={free_ports()}")
        else:
            arguments.append(f"--address={self.address}")
        log = self.folder / f"start-{index}.log"
        with log.open("wb") as output:
            try:
                code = subprocess.run(
                    arguments,
                    env={**_environment(), **(environment or {}), MARK: f"{self.folder}#{index}"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=START_TIMEOUT_S,
                    check=False,
                    start_new_session=True,  # Ctrl-C in a terminal must not tear the nodes down behind our back
                ).returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                raise RayNodesError(f"node {index} did not start: {error}\n{_tail(log)}") from None
        found = next((node for node in self.nodes if node.index == index), None)
        if code != 0 or found is None:
            raise RayNodesError(f"node {index} did not start (`ray start` ended with {code})\n{_tail(log)}")
        self._started = index + 1
        return found

    def kill(self, index: int, *, at_once: Sequence[psutil.Process] = ()) -> list[int]:
        """SIGKILL a node as if its machine lost power: the raylet and all that runs under it. Return the pids.

        Looking for its processes takes a tenth of a second, and much more beside a busy event loop. To kill at an exact
        moment, look before (`processes(index)`) and hand them in as `at_once`: they go first, the others after them.

        The raylet is stopped first, so that it starts no new worker meanwhile; and since its workers are killed too, it
        does not matter whether anybody reaps the raylet (workers of an unreaped one live on).
        """
        _signal(at_once, signal.SIGKILL)
        killed = [process.pid for process in at_once]
        mark = f"{self.folder}#{index}"
        deadline = time.monotonic() + END_TIMEOUT_S
        _wait_for_end(at_once, deadline)
        raylet = next((node.raylet_pid for node in self.nodes if node.index == index), None)
        if raylet is None and not killed:
            raise RayNodesError(f"there is no running node {index}; running are {[n.index for n in self.nodes]}")
        if raylet is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(raylet, signal.SIGSTOP)
        while processes := _with_descendants(process for process, found in _marked() if found == mark):
            killed += [process.pid for process in processes if process.pid not in killed]
            _signal(processes, signal.SIGKILL)
            _wait_for_end(processes, deadline)
            if time.monotonic() > deadline:
                raise RayNodesError(f"processes of node {index} do not die: {[p.pid for p in processes]}")
        return killed

    def stop(self) -> None:
        """End every process of these nodes and remove their folder. May be called twice."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while processes := self.processes():
            _signal(processes, signal.SIGKILL)
            _wait_for_end(processes, deadline)
            if time.monotonic() > deadline:
                raise RayNodesError(f"these processes do not die: {[process.pid for process in processes]}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- what there is

    @property
    def address(self) -> str:
        """Of the head: what `ray.init(address=...)` and `RAY_ADDRESS` take."""
        try:
            return (self.folder / "ray_current_cluster").read_text().strip()
        except FileNotFoundError:
            raise RayNodesError(f"no head has started in {self.folder}") from None

    @property
    def nodes(self) -> list[Node]:
        """The nodes that run now, by index."""
        found = []
        for process, mark in _marked():
            folder, _, index = mark.rpartition("#")
            if folder != str(self.folder):
                continue
            with contextlib.suppress(psutil.Error):
                arguments = process.cmdline()
                if arguments and Path(arguments[0]).name == "raylet":
                    found.append(Node(int(index), process.pid, _option(arguments, "--node_id")))
        return sorted(found, key=lambda node: node.index)

    def processes(self, index: int | None = None) -> list[psutil.Process]:
        """The live processes of node `index`, or of all nodes and of the cluster itself."""
        if index is not None:
            mark = f"{self.folder}#{index}"
            return _with_descendants(process for process, found in _marked() if found == mark)
        return _with_descendants(_of_folder(str(self.folder)))


# ---- processes


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    """Live processes whose environment carries the mark. Ray's Python workers may have written over theirs."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and (mark := process.environ().get(MARK)):
                yield process, mark


def _of_folder(folder: str) -> Iterator[psutil.Process]:
    """Live processes of the cluster in `folder`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and _is_of_folder(process, f"{folder}/"):
                yield process


def _is_of_folder(process: psutil.Process, folder: str) -> bool:
    if process.environ().get(MARK, "").startswith(f"{folder.rstrip('/')}#"):
        return True
    arguments = process.cmdline()
    if arguments and arguments[0].startswith("ray::"):
        # a worker that may have outlived its raylet, and whose title may cover its environment: its log lies there
        return any(file.path.startswith(folder) for file in process.open_files())
    return "/ray/" in " ".join(arguments[:3]) and folder in " ".join(arguments)


def _with_descendants(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in processes:
        found[process.pid] = process
        with contextlib.suppress(psutil.Error):
            for child in process.children(recursive=True):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found[child.pid] = child
    found.pop(os.getpid(), None)
    return list(found.values())


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):  # psutil refuses when the pid has become another process
            process.send_signal(number)


def _wait_for_end(processes: Iterable[psutil.Process], deadline: float) -> None:
    while time.monotonic() < deadline and any(_running(process.pid) for process in processes):
        time.sleep(0.01)


def _running(pid: int) -> bool:
    """A zombie counts as ended: its parent may never reap it, and it does nothing any more."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


# ---- what Ray is given


def _ray_options() -> list[str]:
    return [
        "--num-cpus=1",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        # by default every node would hand out the same worker ports from 10002 on
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
        "--log-style=record",
        "--log-color=false",
    ]


def _environment() -> dict[str, str]:
    # RAY_ADDRESS names some other cluster, which these nodes must not take for their own.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        # unset, a head turns token authentication on when it finds a token file, and the other nodes do not
        "RAY_AUTH_MODE": "disabled",
        # Ray runs workers at nice 15, where anything else on the machine pushes the hosts aside
        "RAY_worker_niceness": "0",
        **inherited,
    }


def _short_temporary_folder() -> str | None:
    """None for the default, unless that is too long for Ray's sockets."""
    return "/tmp" if len(tempfile.gettempdir()) > 30 and Path("/tmp").is_dir() else None


def _option(arguments: list[str], name: str) -> str:
    return next((argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{name}=")), "")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


# ---- command line

cli = typer.Typer(add_completion=False, help="Several Ray nodes on this machine.", no_args_is_help=True)
FolderOption = Annotated[Path | None, typer.Option(help="The cluster's folder; needed when several run.")]


def _print(nodes: RayNodes) -> None:
    print(f"address  {nodes.address}")
    print(f"folder   {nodes.folder}")
    for node in nodes.nodes:
        print(f"node {node.index}   raylet {node.raylet_pid}   {node.node_id}{'   head' if node.head else ''}")


@cli.command()
def start(nodes: Annotated[int, typer.Option(min=1, max=16, help="How many, the head included.")] = 3) -> None:
    """Start the nodes and leave them running."""
    began = time.monotonic()
    running = RayNodes.start(nodes)
    _print(running)
    print(f"started in {time.monotonic() - began:.1f} s; now: export RAY_ADDRESS={running.address}")


@cli.command()
def show(folder: FolderOption = None) -> None:
    """Print the address and the nodes that run."""
    _print(RayNodes.find(folder))


@cli.command()
def add(folder: FolderOption = None) -> None:
    """Let one more node join."""
    nodes = RayNodes.find(folder)
    nodes.add()
    _print(nodes)


@cli.command()
def kill(index: int, folder: FolderOption = None) -> None:
    """SIGKILL a node: its raylet and everything that runs under it."""
    killed = RayNodes.find(folder).kill(index)
    print(f"killed node {index}: {len(killed)} processes")


@cli.command()
def stop(folder: FolderOption = None) -> None:
    """End all nodes and remove their folder."""
    RayNodes.find(folder).stop()


def main() -> int:
    """Run the command line; return its exit code."""
    try:
        cli(standalone_mode=True)
    except RayNodesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
