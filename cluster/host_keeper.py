"""The hosts of one of an app's databases, kept by the coordinator's process: one on every node that may have one, made
anew when it is gone (rollout.py), and what is asked about them.

    open the store, however long it takes  ->  Coordination (who has which shard)  |  nodes, hosts to start, drain, end

There is one keeper per stripe. Each goes on by itself: a database that does not answer holds up its own only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..actors.errors import AtollError, StoreError
from ..actors.outage import Outage
from ..actors.requirements import unmet, weight_of
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import HostRow, HostState, ShardRow, Store
from ..persistence.stripes import Stripe
from ..sharding.pinning import PinState, named, pin_states, why_not
from . import ray_adapter
from .cluster_spec import ClusterSpec
from .coordination import Coordination
from .discovery import host_prefix_on
from .host_process import HostSpec
from .network import TcpNetwork, split_address
from .rollout import drained_nodes, next_steps
from .stripe_hosts import StripeDirectory
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
STORE_ANSWER_S = 1.0
"""Who asks how things are waits no longer for one database: the others' answer is worth having."""


class Ownership(NamedTuple):
    """As a store has it now."""

    hosts: list[HostRow]
    """Living ones."""
    moves: list[dict[str, Any]]
    """Under way, as `Coordination.moves` tells them."""
    pins: list[PinState]


class HostKeeper:
    def __init__(
        self,
        spec: ClusterSpec,
        stripe: Stripe,
        directory: StripeDirectory,
        host_actor: Any,
        looked: Callable[[], Any],
        *,
        restarted: bool,
    ) -> None:
        """`host_actor`: the class of Ray actors that are hosts. `looked`: awaited after each look at the nodes.
        `restarted`: Ray has made this coordinator anew."""
        self.stripe = stripe
        self.problems: dict[str, str] = {}
        """Node -> why it has no host; under "" what is wrong with the keeper itself."""
        self.drained: set[str] = set(spec.drained)
        """Nodes drained by hand. After a restart they are found in the rows of their hosts."""
        self.alone = False
        """No live host is of another version, as far as was seen last."""
        self._spec = spec
        self._directory = directory
        self._host_actor = host_actor
        self._looked = looked
        self._restarted = restarted
        self._stopping = False
        self._store: Store | None = None
        self._coordination: Coordination | None = None
        self._starting: dict[str, asyncio.Task[None]] = {}
        """Node -> the start of a host that is under way there."""
        self._ports: dict[str, int] = {}
        """Node -> the port given to the host that is being started there, when ports are asked for."""
        self._creating = asyncio.Lock()
        self._pinning = asyncio.Lock()
        """One at a time: whether there is room for another pin is read before it is written."""

    async def run(self) -> None:
        """Does not return; what it raises is a bug of ours."""
        while True:
            try:
                store, coordination = await self._opened()
                break
            except (AtollError, OSError) as error:
                self.problems[""] = self._of_stripe(f"the coordinator does not start: {error}")
                log.warning("%s", self.problems[""])
                await asyncio.sleep(RETRY_S)
        self.problems.clear()
        coordination.placing = not self._stopping
        self._store, self._coordination = store, coordination
        deciding = asyncio.create_task(coordination.run())
        hosting = asyncio.create_task(self._keep_hosts(store, coordination))
        await asyncio.wait([deciding, hosting], return_when=asyncio.FIRST_COMPLETED)
        for task in (deciding, hosting):
            if task.done():
                task.result()

    async def _opened(self) -> tuple[Store, Coordination]:
        spec = self._spec
        settings = msgspec.convert(spec.settings, Settings)
        store = open_store(spec.stores[self.stripe.index])
        if self._restarted:
            going = await ray_adapter.on_thread(ray_adapter.draining_nodes)
        await store.open(spec.app_name, settings.shards, self.stripe)
        if self._restarted:
            told = frozenset(spec.drained)
            self.drained = set(drained_nodes(spec.version, await store.hosts(), going=going, told=told))
        coordination = Coordination(
            spec.app_name,
            store=store,
            settings=settings,
            world=SystemWorld(),
            network=TcpNetwork(),
            token=read_token_file(Path(spec.token_file)),
            version=spec.version,
            hosts_wanted=spec.hosts_wanted,
            stripe=self.stripe,
            directory=self._directory,
        )
        return store, coordination

    def _of_stripe(self, problem: str) -> str:
        return problem if self.stripe.count == 1 else f"{self.stripe.named}: {problem}"

    # ---- hosts -----------------------------------------------------------------------------------------------------

    async def _keep_hosts(self, store: Store, coordination: Coordination) -> None:
        outage, now = Outage(log), SystemWorld().monotonic
        while True:
            try:
                await self._look_at_nodes(store, coordination)
                await self._looked()
            except AtollError as error:
                outage.failed(now(), "hosts are looked after later: %s", error)
            else:
                outage.worked(now(), "hosts are looked after again, after %.1f s")
            await asyncio.sleep(NODES_LOOK_S)

    async def _look_at_nodes(self, store: Store, coordination: Coordination) -> None:
        listed, going = await ray_adapter.on_thread(lambda: (ray_adapter.nodes(), ray_adapter.draining_nodes()))
        nodes = {node.id: node for node in listed if not unmet(self._spec.requires, node.resources, node.labels)}
        coordination.draining_nodes = going
        coordination.hosts_wanted = min(self._spec.hosts_wanted, len(nodes.keys() - going - self.drained))
        hosts = await store.hosts()
        live = [host for host in hosts if host.state is HostState.LIVE]
        steps = next_steps(
            self._spec.version,
            list(nodes),
            going=going,
            drained=frozenset(self.drained),
            hosts=hosts,
            shards=await store.shards() if any(host.draining for host in live) else [],
        )
        if self._stopping:
            return
        for solved in self.problems.keys() - set(steps.start) - self._starting.keys() - {""}:
            del self.problems[solved]
        for node_id in steps.start:
            if node_id not in self._starting:
                self._starting[node_id] = asyncio.create_task(self._start_host(nodes[node_id], store, coordination))
        for incarnation in steps.drain:
            await self._mark(incarnation, draining=True)
        for incarnation in steps.undrain:
            await self._mark(incarnation, draining=False)
        for node_id, version in steps.end:
            prefix = host_prefix_on(self._spec.app_name, node_id, version, self.stripe)
            if await ray_adapter.on_thread(partial(ray_adapter.kill_all, prefix)):
                log.info("the host of version %r on node %s was empty, and is ended", version, node_id[:12])
        self.alone = all(host.version == self._spec.version for host in live)

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
            self.problems.pop(node.id, None)
            coordination.poke()
        except AtollError as error:
            problem = self._of_stripe(f"the host on node {node.hostname} ({node.address}) does not start: {error}")
            self.problems[node.id] = problem
            log.warning("%s", problem)  # the next look ends what is left of it, and tries again
            await asyncio.sleep(RETRY_S)
        finally:
            del self._starting[node.id]
            self._ports.pop(node.id, None)

    async def _create_host(self, node: ray_adapter.Node, store: Store) -> Any:
        """The handle of a new host's Ray actor, None when the app is being stopped. Whatever Ray actor of this stripe
        and our version is left on that node is ended first: one that was condemned but was stopped, one that a dead
        coordinator had begun."""
        async with self._creating:  # so that `stop` can wait for what is under way
            if self._stopping:
                return None
            prefix = host_prefix_on(self._spec.app_name, node.id, self._spec.version, self.stripe)
            name = f"{prefix}{secrets.token_hex(4)}"
            spec_json = msgspec.json.encode(self._host_spec(node, await store.hosts()))

            def create() -> Any:
                ray_adapter.kill_all(prefix)
                return ray_adapter.create(self._host_actor, name, spec_json, node=node.id, restarts=0)

            return await ray_adapter.on_thread(create)

    def _host_spec(self, node: ray_adapter.Node, hosts: list[HostRow]) -> HostSpec:
        spec, stripe = self._spec, self.stripe
        port = 0
        if spec.port:  # each stripe has every n-th one, so that no two meet
            taken = {split_address(host.address)[1] for host in hosts if host.state is HostState.LIVE}
            taken.update(self._ports.values())
            ports = itertools.count(spec.port + stripe.index, stripe.count)
            port = self._ports[node.id] = next(port for port in ports if port not in taken)
        return HostSpec(
            app=spec.app,
            app_dir="." if spec.ship else spec.app_dir,
            store=spec.stores[stripe.index],
            stripe=stripe,
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

    @property
    def opened(self) -> bool:
        """Its store was opened."""
        return self._store is not None

    # ---- what is asked ---------------------------------------------------------------------------------------------

    async def ownership(self) -> Ownership | None:
        """None while the store does not answer, or was not opened yet."""
        hosts = await self._asked(lambda store: store.hosts())
        shards = None if hosts is None else await self._asked(lambda store: store.shards())
        if hosts is None or shards is None or self._coordination is None:
            return None
        live = [host for host in hosts if host.state is HostState.LIVE]
        return Ownership(live, self._coordination.moves(), pin_states(hosts, shards))

    async def shards(self) -> list[tuple[ShardRow, str | None]] | None:
        """Each shard's row, and where who has it, or is to claim it, listens. None: as above."""
        hosts = await self._asked(lambda store: store.hosts())
        rows = None if hosts is None else await self._asked(lambda store: store.shards())
        if hosts is None or rows is None:
            return None
        addresses = {host.incarnation: host.address for host in hosts}
        return [(row, None if row.holder is None else addresses.get(row.holder)) for row in rows]

    async def _asked(self, ask: Callable[[Store], Any]) -> Any:
        if self._store is None:
            return None
        try:
            async with asyncio.timeout(STORE_ANSWER_S):
                return await ask(self._store)
        except (StoreError, TimeoutError) as error:
            log.warning("%s", self._of_stripe(f"the store does not answer: {error}"))
            return None

    async def may_drain(self, node: str, *, draining: bool) -> str:
        """Why a node cannot be drained, or that not undone; else nothing."""
        if self._store is None or self._coordination is None:
            raise ray_adapter.RayProblem(self._of_stripe("the coordinator is only starting: try again"))
        if not draining and node in self._coordination.draining_nodes:
            return "Ray itself drains this node, and never takes that back"
        live = [host for host in await self._store.hosts() if host.state is HostState.LIVE]
        if draining and node not in self.drained and all(host.node == node or host.draining for host in live):
            return "no other host could take its shards over, let a node join first"
        return ""

    async def drain(self, node: str, *, draining: bool) -> tuple[int, int]:
        """Drain the hosts of a node, or undo that. Returns how many shards are left there, and how many hosts are being
        started there."""
        assert self._store is not None
        (self.drained.add if draining else self.drained.discard)(node)
        ours = [host for host in await self._store.hosts() if host.state is HostState.LIVE and host.node == node]
        for host in ours:
            if host.draining != draining and (draining or host.version == self._spec.version):
                await self._mark(host.incarnation, draining=draining)
        incarnations = {host.incarnation for host in ours}
        rows = await self._store.shards()
        return sum(bool({row.owner, row.assigned} & incarnations) for row in rows), int(node in self._starting)

    async def pin(self, shard: int, node: str | None) -> tuple[str, str | None]:
        """Pin one of this stripe's shards, or unpin it. Returns why it cannot be, and the pin that it has now."""
        if self._store is None or self._coordination is None:
            raise ray_adapter.RayProblem(self._of_stripe("the coordinator is only starting: try again"))
        async with self._pinning:
            rows = await self._store.shards()
            if refused := why_not(shard, node, await self._store.hosts(), rows):
                return refused, next((row.pin for row in rows if row.shard == shard), None)
            await self._store.pin(shard, node)
        log.info("shard %d %s", shard, "is unpinned" if node is None else f"is pinned to {named(node)}")
        self._coordination.poke()
        return "", node

    async def pending(self) -> tuple[int, int, int] | None:
        """How many commands, messages and dead letters the tables hold. None while the store is not opened yet."""
        if self._store is None:
            return None
        numbers = [row.shard for row in await self._store.shards()]
        commands = messages = letters = 0
        for first in range(0, len(numbers), PENDING_SHARDS):
            for work in await self._store.read_pending(numbers[first : first + PENDING_SHARDS]):
                commands += sum(mailbox.entries for mailbox in work.mailboxes)
                messages += len(work.outbox)
                letters += work.dead_letters
        return commands, messages, letters

    async def stop(self) -> None:
        """Make no more hosts, and give no shard to anybody any more."""
        self._stopping = True
        if self._coordination is not None:
            self._coordination.placing = False
        async with self._creating:
            pass  # a host that was being made when this was asked has its name by now, and can be ended
