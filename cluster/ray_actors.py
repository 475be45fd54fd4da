"""The Ray actors: a host per node, and the coordinator. Ray supervises their processes; everything that matters happens
on a thread with a loop of its own, so that Ray's calls and the data plane do not get into each other's way.

    CoordinatorActor   detached, on the head node, restarted by Ray for ever; makes and replaces hosts
    HostActor          detached, pinned to its node, never restarted: a new one is another incarnation
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import ray

from ..actors.errors import AtollError
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import HostState, Store
from . import ray_adapter
from .coordination import Coordination
from .discovery import host_prefix
from .host_process import HostSpec, run_host, run_loop, undo_niceness
from .hosting import RunningHost
from .log_format import log_to_stderr
from .network import TcpNetwork
from .system import SystemWorld
from .token import read_token_file

log = logging.getLogger("atoll")

NODES_LOOK_S = 0.25
"""How often the coordinator asks Ray for nodes (0.5 ms a time; there is no public way to subscribe)."""
RETRY_S = 1.0
"""Between two tries to start what did not start."""
HOST_START_TIMEOUT_S = 60.0


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `atoll start` decided, for the coordinator and, through it, every host."""

    app: str
    app_name: str
    app_dir: str
    ship: bool
    """The folder was uploaded: it is each worker's current one."""
    store: str
    settings: dict[str, Any]
    token_file: str
    port: int
    """Of the first host; the others take the next ones. 0: any free ones."""
    hosts_wanted: int
    log_level: str
    """Of the logger `atoll` in every process of the app."""
    log_format: str
    """Of all that these processes log."""


def _log_to_ray(spec: HostSpec | ClusterSpec) -> None:
    """Log to standard error, which Ray writes to the worker's file in its session's log folder."""
    log_to_stderr(spec.log_format, spec.log_level)
    log.debug("process %d logs at %s", os.getpid(), spec.log_level)


class _OwnLoop:
    """A thread with a loop, and a way to ask it things from Ray's threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()

    def run(self, main: Any) -> None:
        async def outer() -> Any:
            self._loop = asyncio.get_running_loop()
            self._up.set()
            return await main

        def work() -> None:
            try:
                reason = run_loop(outer())
            except BaseException as error:
                log.critical("%s failed", self._name, exc_info=error)
                reason = f"{type(error).__name__}: {error}"
            log.warning("%s ends: %s", self._name, reason)
            os._exit(1)  # crash-only: Ray sees the process end

        threading.Thread(target=work, name=self._name, daemon=True).start()

    def ask(self, work: Any) -> Future[Any]:
        self._up.wait()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@ray.remote
class HostActor:
    """One host. When it cannot start, everything that is asked of it is answered with the reason, until it is ended."""

    def __init__(self, spec_json: bytes) -> None:
        self._spec = msgspec.json.decode(spec_json, type=HostSpec)
        _log_to_ray(self._spec)
        self._ready: Future[RunningHost] = Future()
        self._own = _OwnLoop("atoll-host")
        self._own.run(self._main())

    async def _main(self) -> str:
        try:
            return await run_host(self._spec, self._ready.set_result)
        except BaseException as error:
            if self._ready.done():
                raise
            log.exception("the host does not start")
            self._ready.set_exception(ray_adapter.RayProblem(self._explained(error)))
            await asyncio.Event().wait()  # the process is ended by whoever asks, and learns the reason
            raise

    def _explained(self, error: BaseException) -> str:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return f"port {self._spec.port} is in use: choose another one with --port, or leave it to any"
        told = str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
        return " ".join(told.split())

    def _running(self) -> RunningHost:
        return self._ready.result(timeout=HOST_START_TIMEOUT_S)

    def info(self) -> dict[str, Any]:
        """Where clients find it; once it serves."""
        running = self._running()
        return {
            "incarnation": running.incarnation,
            "address": running.address,
            "node": self._spec.node,
            "pid": os.getpid(),
            "token_file": self._spec.token_file,
        }

    def status(self) -> dict[str, Any]:
        """What it serves right now."""
        running = self._running()
        host = running.host
        return {
            **self.info(),
            "shards": len(host.shards),
            "shards_in_all": host.settings.shards,
            "entities": sum(len(shard.residents) for shard in list(host.shards.values())),
            "lease_valid": host.lease.valid(),
            "connections": running.server.connections,
            "log_row": host.commits.n,
            "checkpoints": host.upkeep.checkpoints,
        }

    def stop(self) -> bool:
        """Give every shard back. True when all were released."""
        running = self._running()
        self._own.ask(running.stop()).result()
        return not running.host.shards


@ray.remote
class CoordinatorActor:
    """See the module. Everything it needs to go on after a restart is in the store."""

    def __init__(self, spec_json: bytes) -> None:
        self._spec = msgspec.json.decode(spec_json, type=ClusterSpec)
        _log_to_ray(self._spec)
        self._stopping = False
        self._problem = ""
        self._store: Store | None = None
        self._coordination: Coordination | None = None
        self._starting: dict[str, asyncio.Task[None]] = {}
        """Node -> the start of a host that is under way there."""
        self._ports: dict[str, int] = {}
        """Node -> the port that its host was given, when ports are asked for."""
        self._creating = asyncio.Lock()
        self._own = _OwnLoop("atoll-coordinator")
        self._own.run(self._main())

    async def _main(self) -> str:
        undo_niceness()
        while True:
            try:
                store, coordination = await self._opened()
                break
            except (AtollError, OSError) as error:
                self._problem = f"the coordinator does not start: {error}"
                log.warning("%s", self._problem)
                await asyncio.sleep(RETRY_S)
        self._problem = ""
        self._store, self._coordination = store, coordination
        coordination.placing = not self._stopping
        deciding = asyncio.create_task(coordination.run())
        hosting = asyncio.create_task(self._keep_hosts(store, coordination))
        await asyncio.wait([deciding, hosting], return_when=asyncio.FIRST_COMPLETED)
        for task in (deciding, hosting):
            if task.done():
                task.result()
        return "its work ended"

    async def _opened(self) -> tuple[Store, Coordination]:
        spec = self._spec
        settings = msgspec.convert(spec.settings, Settings)
        store = open_store(spec.store)
        await store.open(spec.app_name, settings.shards)
        coordination = Coordination(
            spec.app_name,
            store=store,
            settings=settings,
            world=SystemWorld(),
            network=TcpNetwork(),
            token=read_token_file(Path(spec.token_file)),
            hosts_wanted=spec.hosts_wanted,
        )
        return store, coordination

    # ---- hosts: one on every node that Ray lists, made when there is none, made anew when it is gone ----------------

    async def _keep_hosts(self, store: Store, coordination: Coordination) -> None:
        while True:
            try:
                await self._look_at_nodes(store, coordination)
            except AtollError as error:
                log.warning("hosts are looked after later: %s", error)
            await asyncio.sleep(NODES_LOOK_S)

    async def _look_at_nodes(self, store: Store, coordination: Coordination) -> None:
        nodes = await ray_adapter.on_thread(ray_adapter.nodes)
        coordination.hosts_wanted = min(self._spec.hosts_wanted, len(nodes))
        served = {host.node for host in await store.hosts() if host.state is HostState.LIVE}
        for gone in self._ports.keys() - served - self._starting.keys():
            del self._ports[gone]
        for node in nodes:
            if not self._stopping and node.id not in served and node.id not in self._starting:
                self._starting[node.id] = asyncio.create_task(self._start_host(node, coordination))

    async def _start_host(self, node: ray_adapter.Node, coordination: Coordination) -> None:
        try:
            handle = await self._create_host(node)
            if handle is None:
                return
            await ray_adapter.on_thread(
                lambda: ray_adapter.ask(handle, "info", timeout_s=HOST_START_TIMEOUT_S), HOST_START_TIMEOUT_S + 5
            )
            self._problem = ""
            coordination.poke()
        except AtollError as error:
            self._problem = f"the host on node {node.hostname} ({node.address}) does not start: {error}"
            log.warning("%s", self._problem)  # the next look ends what is left of it, and tries again
            await asyncio.sleep(RETRY_S)
        finally:
            del self._starting[node.id]

    async def _create_host(self, node: ray_adapter.Node) -> Any:
        """The handle of a new host's Ray actor, None when the app is being stopped. Whatever Ray actor of ours is left
        on that node is ended first: one that was condemned but was stopped, one that a dead coordinator had begun."""
        async with self._creating:  # so that `stop` can wait for what is under way
            if self._stopping:
                return None
            prefix = f"{host_prefix(self._spec.app_name)}{node.id[:12]}/"
            name = f"{prefix}{secrets.token_hex(4)}"
            spec_json = msgspec.json.encode(self._host_spec(node))

            def create() -> Any:
                ray_adapter.kill_all(prefix)
                return ray_adapter.create(HostActor, name, spec_json, node=node.id, restarts=0)

            return await ray_adapter.on_thread(create)

    def _host_spec(self, node: ray_adapter.Node) -> HostSpec:
        spec = self._spec
        port = 0
        if spec.port:
            taken = {port for at, port in self._ports.items() if at != node.id}
            port = self._ports[node.id] = next(port for port in itertools.count(spec.port) if port not in taken)
        return HostSpec(
            app=spec.app,
            app_dir="." if spec.ship else spec.app_dir,
            store=spec.store,
            settings=spec.settings,
            token_file=spec.token_file,
            log_level=spec.log_level,
            log_format=spec.log_format,
            bind=node.address,
            port=port,
            node=node.id,
        )

    # ---- asked through Ray -----------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the app is not up, empty when nothing is known to be wrong."""
        return self._problem

    def ownership(self) -> dict[str, Any] | None:
        """Living hosts and shards as the store has them now; None while the store is not opened yet."""
        found: dict[str, Any] | None = self._own.ask(self._ownership()).result()
        return found

    async def _ownership(self) -> dict[str, Any] | None:
        if self._store is None:
            return None
        shards = await self._store.shards()
        return {
            "shards": len(shards),
            "hosts": [
                {"incarnation": host.incarnation, "address": host.address, "node": host.node}
                for host in await self._store.hosts()
                if host.state is HostState.LIVE
            ],
        }

    def stop(self) -> None:
        """Make no more hosts, and give no shard to anybody any more; the process is ended by whoever asked."""
        self._own.ask(self._stop()).result()

    async def _stop(self) -> None:
        self._stopping = True
        if self._coordination is not None:
            self._coordination.placing = False
        async with self._creating:
            pass  # a host that was being made when this was asked has its name by now, and can be ended
