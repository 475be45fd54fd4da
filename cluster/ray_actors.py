"""The Ray actors: a host per node, and the coordinator. Ray supervises their processes; everything that matters happens
on a thread with a loop of its own, so that Ray's calls and the data plane do not get into each other's way.

    CoordinatorActor   detached, on the head node, restarted by Ray for ever; makes and replaces hosts
    HostActor          detached, pinned to its node, never restarted: a new one is another incarnation
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import ray

from ..actors.errors import AtollError
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import HostRow, HostState, ShardState
from . import ray_adapter
from .coordination import Coordination
from .discovery import host_prefix
from .host_process import HostSpec, run_host, run_loop
from .hosting import RunningHost
from .network import TcpNetwork
from .system import SystemWorld
from .token import read_token_file

log = logging.getLogger("atoll")

NODES_LOOK_S = 1.0
"""How often the coordinator asks Ray for nodes (0.5 ms a time; there is no public way to subscribe)."""
HOST_START_TIMEOUT_S = 60.0


def coordinator_name(app_name: str) -> str:
    return f"{app_name}/coordinator"


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
    """One host. Its constructor returns once it serves."""

    def __init__(self, spec_json: bytes) -> None:
        logging.basicConfig(level=os.environ.get("ATOLL_LOG", "INFO"))
        self._spec = msgspec.json.decode(spec_json, type=HostSpec)
        self._own = _OwnLoop("atoll-host")
        self._ready: Future[RunningHost] = Future()
        self._own.run(self._main())
        self._running = self._ready.result(timeout=HOST_START_TIMEOUT_S)

    async def _main(self) -> str:
        try:
            return await run_host(self._spec, self._ready.set_result)
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
            await asyncio.Event().wait()  # the constructor reports it; Ray then ends the process
            raise

    def info(self) -> dict[str, Any]:
        """Where clients find it."""
        return {
            "incarnation": self._running.incarnation,
            "address": self._running.address,
            "node": self._spec.node,
            "pid": os.getpid(),
            "token_file": self._spec.token_file,
        }

    def status(self) -> dict[str, Any]:
        """What it serves right now."""
        host = self._running.host
        return {
            **self.info(),
            "shards": len(host.shards),
            "entities": sum(len(shard.residents) for shard in list(host.shards.values())),
            "lease_valid": host.lease.valid(),
            "connections": self._running.server.connections,
            "log_row": host.commits.n,
            "checkpoints": host.upkeep.checkpoints,
        }

    def stop(self) -> bool:
        """Give every shard back. True when all were released."""
        host = self._running.host
        self._own.ask(host.stop()).result()
        return not host.shards


@ray.remote
class CoordinatorActor:
    """See the module. Everything it needs to go on after a restart is in the store."""

    def __init__(self, spec_json: bytes) -> None:
        logging.basicConfig(level=os.environ.get("ATOLL_LOG", "INFO"))
        self._spec = msgspec.json.decode(spec_json, type=ClusterSpec)
        self._stopping = False
        self._problem = ""
        self._starting: dict[str, Any] = {}
        """Node -> handle of a host under way there."""
        self._ports = 0
        self._own = _OwnLoop("atoll-coordinator")
        self._own.run(self._main())

    async def _main(self) -> str:
        spec = self._spec
        settings = msgspec.convert(spec.settings, Settings)
        store = open_store(spec.store)
        await store.open(spec.app_name, settings.shards)
        self._store = store
        self._coordination = Coordination(
            spec.app_name,
            store=store,
            settings=settings,
            world=SystemWorld(),
            network=TcpNetwork(),
            token=read_token_file(Path(spec.token_file)),
            hosts_wanted=spec.hosts_wanted,
        )
        deciding = asyncio.create_task(self._coordination.run())
        hosting = asyncio.create_task(self._keep_hosts())
        await asyncio.wait([deciding, hosting], return_when=asyncio.FIRST_COMPLETED)
        for task in (deciding, hosting):
            if task.done():
                task.result()
        return "its work ended"

    async def _keep_hosts(self) -> None:
        """One host on every node that Ray lists: made when there is none, made anew when it is gone."""
        while True:
            try:
                if not self._stopping:
                    await self._look_at_nodes()
            except AtollError as error:
                log.warning("hosts are looked after later: %s", error)
            await asyncio.sleep(NODES_LOOK_S)

    async def _look_at_nodes(self) -> None:
        nodes = await ray_adapter.on_thread(ray_adapter.nodes)
        served = {host.node for host in await self._store.hosts() if host.state is HostState.LIVE}
        for node in nodes:
            if node.id in served or node.id in self._starting or self._stopping:
                continue
            self._starting[node.id] = asyncio.create_task(self._start_host(node))

    async def _start_host(self, node: ray_adapter.Node) -> None:
        spec = self._spec
        offset, self._ports = self._ports, self._ports + 1
        host_spec = HostSpec(
            app=spec.app,
            app_dir="." if spec.ship else spec.app_dir,
            store=spec.store,
            settings=spec.settings,
            token_file=spec.token_file,
            bind=node.address,
            port=spec.port + offset if spec.port else 0,
            node=node.id,
        )
        name = f"{host_prefix(spec.app_name)}{node.id[:12]}/{os.getpid()}-{offset}"
        try:
            handle = await ray_adapter.on_thread(
                lambda: ray_adapter.create(HostActor, name, msgspec.json.encode(host_spec), node=node.id, restarts=0)
            )
            await ray_adapter.on_thread(
                lambda: ray_adapter.ask(handle, "info", timeout_s=HOST_START_TIMEOUT_S), HOST_START_TIMEOUT_S + 5
            )
            self._problem = ""
            self._coordination.poke()
        except AtollError as error:
            self._problem = f"the host on node {node.hostname} ({node.address}) does not start: {error}"
            log.warning("%s", self._problem)
            await asyncio.sleep(NODES_LOOK_S)
        finally:
            del self._starting[node.id]

    def problem(self) -> str:
        """Why a host does not start, empty when all do."""
        return self._problem

    def ownership(self) -> dict[str, Any]:
        """Hosts and shards as the store has them now."""
        return dict(self._own.ask(self._ownership()).result())

    async def _ownership(self) -> dict[str, Any]:
        hosts: list[HostRow] = await self._store.hosts()
        shards = await self._store.shards()
        return {
            "shards": len(shards),
            "owned": sum(row.state is ShardState.OWNED for row in shards),
            "hosts": [
                {
                    "incarnation": host.incarnation,
                    "address": host.address,
                    "state": str(host.state),
                    "node": host.node,
                    "renewals": host.renewals,
                    "shards": sum(row.owner == host.incarnation for row in shards),
                }
                for host in hosts
            ],
        }

    def stop(self) -> None:
        """Make no more hosts, and give no shard to anybody any more; the process is ended by whoever asked."""
        self._stopping = True
        self._coordination.placing = False
