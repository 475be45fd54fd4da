"""A whole cluster on virtual time: real hosts, coordinators and clients over a shared memory store that has bad days.

The store's calls take seeded time and sometimes fail, before or after they took effect; processes are killed, stopped
and continued by the tests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from ledger import Journal, List
from simulator.simulation import Simulation

import atoll
from atoll.actors.errors import StoreUnavailable
from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster
from atoll.cluster.client import Client
from atoll.cluster.coordination import Coordination
from atoll.cluster.hosting import RunningHost, start_host
from atoll.cluster.link import Access
from atoll.cluster.stripe_hosts import StripeDirectory
from atoll.cluster.striped import StripedClient
from atoll.cluster.token import Token
from atoll.persistence.memory import MemoryStore
from atoll.persistence.spi import Assignment, HostState
from atoll.persistence.stripes import ONLY, Stripe

SETTINGS = {
    "shards": 4,
    "checkpoint_s": 0.5,
    "checkpoint_commands": 50,
    "uncheckpointed_commands_max": 200,
    "snapshot_every": 5,
    "rest_idle_s": 0.2,
    "passivate_idle_s": 1.0,
    "table_write_rows": 3,
    "shard_window": 16,
    "mailbox_commands_max": 8,
    "batch_commands_max": 5,
    "command_timeout_s": 20.0,
}


APP = atoll.App("chaos", entities=[List, Journal], settings=SETTINGS)


class WeakStore:
    """A `Store` whose calls take time and fail; what is kept is the memory store's business."""

    def __init__(self, store: MemoryStore, luck: random.Random, faults: float) -> None:
        self._store = store
        self._luck = luck
        self.faults = faults
        self.away = False
        """It answers nothing but that."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(self._luck.uniform(0.0001, 0.002))
            if self.away:
                raise StoreUnavailable(f"{name}: the store is away")
            luck = self._luck.random()
            if luck < self.faults / 2:
                raise StoreUnavailable(f"{name}: lost on the way there")
            result = await method(*args, **kwargs)
            await asyncio.sleep(self._luck.uniform(0.0001, 0.002))
            if luck < self.faults:
                raise StoreUnavailable(f"{name}: lost on the way back")
            return result

        return call


class SimCluster:
    def __init__(
        self,
        simulation: Simulation,
        *,
        faults: float = 0.02,
        app: atoll.App = APP,
        resources: Any = None,
        stripe: Stripe = ONLY,
    ) -> None:
        """`resources`: what handlers find on every host. `stripe`: where the app has several databases, whose cluster
        this is; `start_coordinators` makes one for all of them."""
        self.simulation = simulation
        self.app = app
        self.resources = resources
        self.stripe = stripe
        self.luck = random.Random(f"{simulation.seed}/cluster/{stripe.index}")
        self.settings, _ = Settings.load(app.settings_asked, {})
        self.store = MemoryStore()
        self.faults = faults
        self.token = Token(b"t" * 32)
        self.hosts: dict[int, Any] = {}
        """incarnation -> process"""
        self.running: dict[int, RunningHost] = {}
        self.coordinator: Any = None
        self._made = 0
        self._weak_stores: list[WeakStore] = []

    def weak_store(self) -> Any:
        store = WeakStore(self.store, random.Random(self.luck.random()), self.faults)
        self._weak_stores.append(store)
        return store

    def store_away(self, away: bool) -> None:
        """From now on the store answers nobody that is here already, or all again."""
        for store in self._weak_stores:
            store.away = away

    async def open(self) -> None:
        await self.store.open(self.app.name, self.settings.shards, self.stripe)

    def _name(self, what: str) -> str:
        self._made += 1
        return f"{what}-{self._made}" if self.stripe.count == 1 else f"{what}-{self.stripe.index}-{self._made}"

    async def start_host(self) -> int:
        name = self._name("host")
        process = self.simulation.process(name)
        ready: asyncio.Future[RunningHost] = asyncio.get_running_loop().create_future()

        async def life() -> None:
            world = self.simulation.world(name)
            store = self.weak_store()
            while True:
                try:
                    running = await start_host(
                        self.app,
                        store=store,
                        stripe=self.stripe,
                        settings=self.settings,
                        world=world,
                        network=self.simulation.network,
                        token=self.token,
                        resources=self.resources,
                    )
                    break
                except StoreUnavailable:
                    continue
            host = running.host

            async def lease() -> None:
                await host.keep_lease(host.lease_renewed)
                host.end("condemned")

            world.spawn(lease(), "lease")
            ready.set_result(running)
            reason = await host.ended
            assert "internal" not in reason, reason
            process.kill()

        process.run(life())
        running = await ready
        self.hosts[running.incarnation] = process
        self.running[running.incarnation] = running
        return running.incarnation

    def start_coordinator(self, hosts_wanted: int = 1) -> None:
        name = self._name("coordinator")
        self.coordinator = self.simulation.process(name)
        self.coordinator.run(self.coordination(name, hosts_wanted, None).run())

    def coordination(self, process: str, hosts_wanted: int, directory: StripeDirectory | None) -> Coordination:
        return Coordination(
            self.app.name,
            store=self.weak_store(),
            settings=self.settings,
            world=self.simulation.world(process),
            network=self.simulation.network,
            token=self.token,
            version=self.app.version,
            hosts_wanted=hosts_wanted,
            stripe=self.stripe,
            directory=directory,
        )

    def addresses(self) -> list[str]:
        return [self.running[i].address for i, process in self.hosts.items() if process.life.value != "dead"]

    def unanswered(self) -> tuple[int, int]:
        """Of all hosts that run: calls and bytes that take room in a window."""
        running = [self.running[i].server for i, process in self.hosts.items() if process.life.value == "running"]
        commands, sizes = zip(*(server.unanswered for server in running), strict=True)
        return sum(commands), sum(sizes)

    async def discover(self) -> list[str]:
        await asyncio.sleep(0.01)
        return self.addresses()

    async def client(self, name: str) -> Cluster:
        """A client in a process of its own would need its callers there: this one runs where it is called."""
        access = Access(
            app_name=self.app.name,
            token=self.token,
            settings=self.settings,
            world=self.simulation.world(name),
            network=self.simulation.network,
        )
        client = Client(access, self.addresses(), rejections=self.app.rejections, discover=self.discover)
        await client.open(30)
        if self.stripe.count > 1:
            return Cluster(StripedClient.beside(client, ()))
        return Cluster(client)


def start_coordinators(clusters: Sequence[SimCluster], hosts_wanted: int) -> Any:
    """One process that coordinates the clusters of all stripes of an app; return it."""
    name = "coordinator-of-all"
    process = clusters[0].simulation.process(name)
    directory = StripeDirectory(len(clusters))

    async def life() -> None:
        await asyncio.gather(*(cluster.coordination(name, hosts_wanted, directory).run() for cluster in clusters))

    process.run(life())
    return process


async def nemesis(cluster: SimCluster, luck: random.Random, seconds: float) -> int:
    """Kills, stops, continues, starts, moves, drains; returns how many faults there were."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    faults = 0
    while loop.time() < end:
        await asyncio.sleep(luck.uniform(0.1, 3))
        alive = [process for process in cluster.hosts.values() if process.life.value == "running"]
        paused = [process for process in cluster.hosts.values() if process.life.value == "paused"]
        what = luck.random()
        if what < 0.3 and alive:
            luck.choice(alive).kill()
        elif what < 0.55 and alive:
            luck.choice(alive).pause()
        elif what < 0.75 and paused:
            luck.choice(paused).resume()
        elif what < 0.82:
            cluster.coordinator.kill()
            cluster.start_coordinator()
        elif what < 0.86 and len(alive) > 1:
            one = luck.choice([*alive, cluster.coordinator])
            other = luck.choice([process for process in alive if process is not one])
            cluster.simulation.network.cut(one, other)
            loop.call_later(luck.uniform(1, 6), cluster.simulation.network.heal, one, other)
        elif what < 0.94:
            await move_or_drain(cluster, luck)
        else:
            running = [i for i, process in cluster.hosts.items() if process.life.value == "running"]
            if running:
                host = cluster.running[luck.choice(running)].host
                shards = list(host.shards)
                if shards:
                    cluster.hosts[host.incarnation].run(host.ownership.release(luck.choice(shards)))
        faults += 1
        if len([p for p in cluster.hosts.values() if p.life.value == "running"]) < 2:
            await cluster.start_host()
    return faults


async def move_or_drain(cluster: SimCluster, luck: random.Random) -> None:
    """Ask for some planned moves, to wherever; or drain a host, or take it back; or pin a shard, or unpin it."""
    hosts = [row for row in await cluster.store.hosts() if row.state is HostState.LIVE]
    if not hosts:
        return
    host = luck.choice(hosts)
    if luck.random() < 0.3:
        await cluster.store.set_draining(host.incarnation, not host.draining)
        return
    if luck.random() < 0.3:
        await cluster.store.pin(luck.randrange(cluster.settings.shards), luck.choice(["", None]))
        return
    rows = luck.sample(await cluster.store.shards(), luck.randint(1, cluster.settings.shards))
    await cluster.store.move([Assignment(row.shard, row.epoch, host.incarnation) for row in rows])
