"""The Ray actors: a host per node, and the coordinator. Ray supervises their processes; everything that matters happens
on a thread with a loop of its own, so that Ray's calls and the data plane do not get into each other's way.

    CoordinatorActor   detached, on the head node, restarted by Ray for ever; makes, replaces, drains and ends hosts
    HostActor          detached, pinned to its node, never restarted: a new one is another incarnation

Both run in the `runtime_env` of the `atoll start` that made the coordinator: where a folder was shipped, each version
of an app has its own.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import ray

from ..actors.errors import AtollError, StoreError
from ..actors.outage import Outage
from ..actors.requirements import unmet, weight_of
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import HostRow, HostState, Store
from ..sharding.pinning import named, pin_states, why_not
from . import ray_adapter
from .coordination import Coordination
from .discovery import host_prefix, host_prefix_on, version_part
from .host_process import HostSpec, run_host, run_loop, undo_niceness
from .hosting import RunningHost
from .log_format import log_to_stderr
from .network import TcpNetwork, split_address
from .rollout import drained_nodes, next_steps
from .system import SystemWorld
from .token import read_token_file

log = logging.getLogger("atoll")

NODES_LOOK_S = 0.25
"""How often the coordinator asks Ray for nodes (0.5 ms a time; there is no public way to subscribe)."""
RETRY_S = 1.0
"""Between two tries to start what did not start."""
HOST_START_TIMEOUT_S = 60.0
PENDING_SHARDS = 16
"""Read at a time when it is counted what is left: messages come with their contents."""


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `atoll start` decided, for the coordinator and, through it, every host."""

    app: str
    app_name: str
    version: str = ""
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
    requires: dict[str, float | str] = {}
    """What a node must have to get a host."""
    drained: tuple[str, ...] = ()
    """Nodes that had been drained by hand when this version was started."""


class Launch(msgspec.Struct, frozen=True):
    """What it takes to make a running coordinator again."""

    spec: ClusterSpec
    runtime_env: dict[str, Any]
    stopping: bool = False
    """It decides nothing any more: somebody was about to end it."""


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
            "version": self._spec.version or "",
            "kinds": sorted(running.host.kinds),
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
            "entities": host.entities,
            "lease_valid": host.lease.valid(),
            "connections": running.server.connections,
            "log_row": host.commits.n,
            "checkpoints": host.upkeep.checkpoints,
            "hot": host.hot()._asdict(),
        }

    def spec(self) -> bytes:
        """The `HostSpec` that it was made from, as JSON."""
        return msgspec.json.encode(self._spec)

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
        self._restarted = ray_adapter.was_restarted()
        self._stopping = False
        self._problems: dict[str, str] = {}
        """Node -> why it has no host; under "" what is wrong with the coordinator itself."""
        self._store: Store | None = None
        self._coordination: Coordination | None = None
        self._drained: set[str] = set(self._spec.drained)
        """Nodes drained by hand. After a restart they are found in the rows of their hosts."""
        self._starting: dict[str, asyncio.Task[None]] = {}
        """Node -> the start of a host that is under way there."""
        self._ports: dict[str, int] = {}
        """Node -> the port given to the host that is being started there, when ports are asked for."""
        self._swept = False
        """Nothing is left of other versions."""
        self._creating = asyncio.Lock()
        self._pinning = asyncio.Lock()
        """One at a time: whether there is room for another pin is read before it is written."""
        self._own = _OwnLoop("atoll-coordinator")
        self._own.run(self._main())

    async def _main(self) -> str:
        undo_niceness()
        while True:
            try:
                store, coordination = await self._opened()
                break
            except (AtollError, OSError) as error:
                self._problems[""] = f"the coordinator does not start: {error}"
                log.warning("%s", self._problems[""])
                await asyncio.sleep(RETRY_S)
        self._problems.clear()
        coordination.placing = not self._stopping
        self._store, self._coordination = store, coordination
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
        if self._restarted:
            going = await ray_adapter.on_thread(ray_adapter.draining_nodes)
        await store.open(spec.app_name, settings.shards)
        if self._restarted:
            told = frozenset(spec.drained)
            self._drained = set(drained_nodes(spec.version, await store.hosts(), going=going, told=told))
        coordination = Coordination(
            spec.app_name,
            store=store,
            settings=settings,
            world=SystemWorld(),
            network=TcpNetwork(),
            token=read_token_file(Path(spec.token_file)),
            version=spec.version,
            hosts_wanted=spec.hosts_wanted,
        )
        return store, coordination

    # ---- hosts: one on every node that may have one, made anew when it is gone (rollout.py) -------------------------

    async def _keep_hosts(self, store: Store, coordination: Coordination) -> None:
        outage, now = Outage(log), SystemWorld().monotonic
        while True:
            try:
                await self._look_at_nodes(store, coordination)
            except AtollError as error:
                outage.failed(now(), "hosts are looked after later: %s", error)
            else:
                outage.worked(now(), "hosts are looked after again, after %.1f s")
            await asyncio.sleep(NODES_LOOK_S)

    async def _look_at_nodes(self, store: Store, coordination: Coordination) -> None:
        listed, going = await ray_adapter.on_thread(lambda: (ray_adapter.nodes(), ray_adapter.draining_nodes()))
        nodes = {node.id: node for node in listed if not unmet(self._spec.requires, node.resources, node.labels)}
        coordination.draining_nodes = going
        coordination.hosts_wanted = min(self._spec.hosts_wanted, len(nodes.keys() - going - self._drained))
        hosts = await store.hosts()
        live = [host for host in hosts if host.state is HostState.LIVE]
        steps = next_steps(
            self._spec.version,
            list(nodes),
            going=going,
            drained=frozenset(self._drained),
            hosts=hosts,
            shards=await store.shards() if any(host.draining for host in live) else [],
        )
        if self._stopping:
            return
        for solved in self._problems.keys() - set(steps.start) - self._starting.keys() - {""}:
            del self._problems[solved]
        for node_id in steps.start:
            if node_id not in self._starting:
                self._starting[node_id] = asyncio.create_task(self._start_host(nodes[node_id], store, coordination))
        for incarnation in steps.drain:
            await self._mark(incarnation, draining=True)
        for incarnation in steps.undrain:
            await self._mark(incarnation, draining=False)
        for node_id, version in steps.end:
            prefix = host_prefix_on(self._spec.app_name, node_id, version)
            if await ray_adapter.on_thread(partial(ray_adapter.kill_all, prefix)):
                log.info("the host of version %r on node %s was empty, and is ended", version, node_id[:12])
        await self._sweep_actors(live)

    async def _sweep_actors(self, live: Sequence[HostRow]) -> None:
        """Once no live host is of another version, end what is left of such: hosts that did not start, stopped ones."""
        if any(host.version != self._spec.version for host in live):
            self._swept = False
        elif not self._swept:
            prefix, ours = host_prefix(self._spec.app_name), version_part(self._spec.version)
            await ray_adapter.on_thread(partial(ray_adapter.kill_all, prefix, but=ours))
            self._swept = True

    async def _mark(self, incarnation: int, *, draining: bool) -> None:
        assert self._store is not None
        assert self._coordination is not None
        log.info("host %d %s", incarnation, "drains" if draining else "may have shards again")
        await self._store.set_draining(incarnation, draining)
        self._coordination.poke()

    async def _start_host(self, node: ray_adapter.Node, store: Store, coordination: Coordination) -> None:
        try:
            handle = await self._create_host(node, store)
            if handle is None:
                return
            await ray_adapter.on_thread(
                lambda: ray_adapter.ask(handle, "info", timeout_s=HOST_START_TIMEOUT_S), HOST_START_TIMEOUT_S + 5
            )
            self._problems.pop(node.id, None)
            coordination.poke()
        except AtollError as error:
            problem = f"the host on node {node.hostname} ({node.address}) does not start: {error}"
            self._problems[node.id] = problem
            log.warning("%s", problem)  # the next look ends what is left of it, and tries again
            await asyncio.sleep(RETRY_S)
        finally:
            del self._starting[node.id]
            self._ports.pop(node.id, None)

    async def _create_host(self, node: ray_adapter.Node, store: Store) -> Any:
        """The handle of a new host's Ray actor, None when the app is being stopped. Whatever Ray actor of ours and of
        our version is left on that node is ended first: one that was condemned but was stopped, one that a dead
        coordinator had begun."""
        async with self._creating:  # so that `stop` can wait for what is under way
            if self._stopping:
                return None
            prefix = host_prefix_on(self._spec.app_name, node.id, self._spec.version)
            name = f"{prefix}{secrets.token_hex(4)}"
            spec_json = msgspec.json.encode(self._host_spec(node, await store.hosts()))

            def create() -> Any:
                ray_adapter.kill_all(prefix)
                return ray_adapter.create(HostActor, name, spec_json, node=node.id, restarts=0)

            return await ray_adapter.on_thread(create)

    def _host_spec(self, node: ray_adapter.Node, hosts: Sequence[HostRow]) -> HostSpec:
        spec = self._spec
        port = 0
        if spec.port:
            taken = {split_address(host.address)[1] for host in hosts if host.state is HostState.LIVE}
            taken.update(self._ports.values())
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
            weight=weight_of(node.labels),
            version=spec.version,
        )

    # ---- asked through Ray -----------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the app is not up, empty when nothing is known to be wrong."""
        return next(iter(list(self._problems.values())), "")

    def launch(self) -> bytes:
        """A `Launch` as JSON: what this coordinator was made from, and the nodes that are drained now."""
        spec = msgspec.structs.replace(self._spec, drained=tuple(sorted(self._drained)))
        return msgspec.json.encode(Launch(spec, ray_adapter.this_runtime_env(), self._stopping))

    def ownership(self) -> dict[str, Any] | None:
        """Living hosts, shards, moves under way and pins as the store has them now; None while it is not opened yet."""
        found: dict[str, Any] | None = self._own.ask(self._ownership()).result()
        return found

    async def _ownership(self) -> dict[str, Any] | None:
        if self._store is None or self._coordination is None:
            return None
        hosts, shards = await self._store.hosts(), await self._store.shards()
        return {
            "version": self._spec.version,
            "shards": len(shards),
            "hosts": [
                {
                    "incarnation": host.incarnation,
                    "address": host.address,
                    "node": host.node,
                    "version": host.version,
                    "draining": host.draining,
                }
                for host in hosts
                if host.state is HostState.LIVE
            ],
            "moves": self._coordination.moves(),
            "pins": [{**msgspec.structs.asdict(pin), "alone": pin.is_alone} for pin in pin_states(hosts, shards)],
        }

    def shards(self) -> list[dict[str, Any]] | None:
        """Every shard's row in the store: `shard`, `state`, `owner` and `address` (who has it, or is to claim it),
        `epoch`, `target`, `position` and `pin`; None while the store is not opened yet."""
        found: list[dict[str, Any]] | None = self._own.ask(self._shards()).result()
        return found

    async def _shards(self) -> list[dict[str, Any]] | None:
        if self._store is None:
            return None
        addresses = {host.incarnation: host.address for host in await self._store.hosts()}
        rows = []
        for row in await self._store.shards():
            owner = row.assigned if row.owner is None else row.owner
            rows.append(
                {
                    "shard": row.shard,
                    "state": row.state.value,
                    "owner": owner,
                    "address": None if owner is None else addresses.get(owner),
                    "epoch": row.epoch,
                    "target": row.target,
                    "position": row.position,
                    "pin": row.pin,
                }
            )
        return rows

    def drain(self, node: str, draining: bool) -> dict[str, Any]:
        """Drain the hosts of a node, or undo that; it may be asked for again. Returns how many shards are left on the
        node (`shards`), how many hosts are being started there (`starting`), and why it cannot be (`refused`)."""
        found: dict[str, Any] = self._own.ask(self._drain(node, draining=draining)).result()
        return found

    async def _drain(self, node: str, *, draining: bool) -> dict[str, Any]:
        if self._store is None or self._coordination is None:
            raise ray_adapter.RayProblem("the coordinator is only starting: try again")
        nothing = {"shards": 0, "starting": 0}
        if not draining and node in self._coordination.draining_nodes:
            return {**nothing, "refused": "Ray itself drains this node, and never takes that back"}
        try:
            live = [host for host in await self._store.hosts() if host.state is HostState.LIVE]
            ours = [host for host in live if host.node == node]
            others = [host for host in live if host.node != node and not host.draining]
            if draining and node not in self._drained and not others:
                return {**nothing, "refused": "no other host could take its shards over, let a node join first"}
            (self._drained.add if draining else self._drained.discard)(node)
            for host in ours:
                if host.draining != draining and (draining or host.version == self._spec.version):
                    await self._mark(host.incarnation, draining=draining)
            rows = await self._store.shards()
        except StoreError as error:
            raise ray_adapter.RayProblem(f"the store does not answer: {error}") from None
        incarnations = {host.incarnation for host in ours}
        return {
            "shards": sum(bool({row.owner, row.assigned} & incarnations) for row in rows),
            "starting": int(node in self._starting),
            "refused": "",
        }

    def pin(self, shard: int, node: str | None) -> dict[str, Any]:
        """Give a shard a host for itself, on that node or ("") on any, or take that back (None). Returns why it cannot
        be (`refused`, one line), and the pin that the shard has in the store now (`pin`)."""
        found: dict[str, Any] = self._own.ask(self._pin(shard, node)).result()
        return found

    async def _pin(self, shard: int, node: str | None) -> dict[str, Any]:
        if self._store is None or self._coordination is None:
            raise ray_adapter.RayProblem("the coordinator is only starting: try again")
        try:
            async with self._pinning:
                rows = await self._store.shards()
                refused = why_not(shard, node, await self._store.hosts(), rows)
                if refused:
                    return {"refused": refused, "pin": rows[shard].pin if shard < len(rows) else None}
                await self._store.pin(shard, node)
        except StoreError as error:
            raise ray_adapter.RayProblem(f"the store does not answer: {error}") from None
        log.info("shard %d %s", shard, "is unpinned" if node is None else f"is pinned to {named(node)}")
        self._coordination.poke()
        return {"refused": "", "pin": node}

    def pending(self) -> dict[str, int] | None:
        """How much the tables hold that goes on with the next start: `commands`, `messages`, `dead_letters`. All there
        is, once every shard was given back. None while the store is not opened yet."""
        found: dict[str, int] | None = self._own.ask(self._pending()).result()
        return found

    async def _pending(self) -> dict[str, int] | None:
        if self._store is None:
            return None
        numbers = [row.shard for row in await self._store.shards()]
        commands = messages = letters = 0
        for first in range(0, len(numbers), PENDING_SHARDS):
            for work in await self._store.read_pending(numbers[first : first + PENDING_SHARDS]):
                commands += sum(mailbox.entries for mailbox in work.mailboxes)
                messages += len(work.outbox)
                letters += work.dead_letters
        return {"commands": commands, "messages": messages, "dead_letters": letters}

    def stop(self) -> None:
        """Make no more hosts, and give no shard to anybody any more; the process is ended by whoever asked."""
        self._own.ask(self._stop()).result()

    async def _stop(self) -> None:
        self._stopping = True
        if self._coordination is not None:
            self._coordination.placing = False
        async with self._creating:
            pass  # a host that was being made when this was asked has its name by now, and can be ended
