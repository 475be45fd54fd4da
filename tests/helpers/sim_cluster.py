"""A whole cluster on virtual time: real hosts, coordinators and clients over a shared memory store that has bad days.

The store's calls take seeded time, sometimes fail before or after they took effect, and sometimes arrive twice; processes
are killed, stopped and continued. The checker at the bottom decides whether the history was exactly-once and in order.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import atoll
from atoll.actors.errors import StoreUnavailable
from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster
from atoll.cluster.client import Client
from atoll.cluster.coordination import Coordination
from atoll.cluster.hosting import RunningHost, start_host
from atoll.cluster.token import Token
from atoll.persistence.memory import MemoryStore
from simulator.simulation import Simulation

SETTINGS = {
    "shards": 4,
    "checkpoint_s": 0.5,
    "checkpoint_commands": 50,
    "uncheckpointed_commands_max": 200,
    "snapshot_every": 5,
    "passivate_idle_s": 1.0,
    "table_write_rows": 3,
    "shard_window": 16,
    "mailbox_commands_max": 8,
    "batch_commands_max": 5,
    "command_timeout_s": 20.0,
}


class List(atoll.Entity):
    """Appends unique tokens; the reply is the index at which the token stands."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, token: str) -> int:
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    async def append_slowly(self, token: str, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    def append_if_even(self, token: str) -> int:
        if len(self.items) % 2:
            raise atoll.Rejected(f"odd {len(self.items)}")
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    def append_and_fail(self, token: str) -> int:
        self.items.append(token)
        raise RuntimeError("on purpose")

    @atoll.query
    def read(self) -> list[str]:
        return self.items


@dataclass(frozen=True)
class Noted:
    token: str


class Journal(atoll.EventSourced):
    """The same as `List`, from events."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, token: str) -> int:
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    async def append_slowly(self, token: str, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    def append_if_even(self, token: str) -> int:
        if len(self.items) % 2:
            raise atoll.Rejected(f"odd {len(self.items)}")
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    def append_and_fail(self, token: str) -> int:
        self.emit(Noted(token))
        raise RuntimeError("on purpose")

    @atoll.query
    def read(self) -> list[str]:
        return self.items

    @atoll.apply
    def _noted(self, event: Noted) -> None:
        self.items = [*self.items, event.token]


APP = atoll.App("chaos", entities=[List, Journal], settings=SETTINGS)


class WeakStore:
    """A `Store` whose calls take time and fail; what is kept is the memory store's business."""

    def __init__(self, store: MemoryStore, luck: random.Random, faults: float) -> None:
        self._store = store
        self._luck = luck
        self.faults = faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(self._luck.uniform(0.0001, 0.002))
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
    def __init__(self, simulation: Simulation, *, faults: float = 0.02, app: atoll.App = APP) -> None:
        self.simulation = simulation
        self.app = app
        self.luck = random.Random(f"{simulation.seed}/cluster")
        self.settings, _ = Settings.load(app.settings_asked, {})
        self.store = MemoryStore()
        self.faults = faults
        self.token = Token(b"t" * 32)
        self.hosts: dict[int, Any] = {}
        """incarnation -> process"""
        self.running: dict[int, RunningHost] = {}
        self.coordinator: Any = None
        self._made = 0

    def weak_store(self) -> Any:
        return WeakStore(self.store, random.Random(self.luck.random()), self.faults)

    async def open(self) -> None:
        await self.store.open(self.app.name, self.settings.shards)

    async def start_host(self) -> int:
        self._made += 1
        name = f"host-{self._made}"
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
                        settings=self.settings,
                        world=world,
                        network=self.simulation.network,
                        token=self.token,
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
        self._made += 1
        name = f"coordinator-{self._made}"
        self.coordinator = self.simulation.process(name)
        self.coordinator.run(
            Coordination(
                self.app.name,
                store=self.weak_store(),
                settings=self.settings,
                world=self.simulation.world(name),
                network=self.simulation.network,
                token=self.token,
                hosts_wanted=hosts_wanted,
            ).run()
        )

    def addresses(self) -> list[str]:
        return [self.running[i].address for i, process in self.hosts.items() if process.life.value != "dead"]

    async def discover(self) -> list[str]:
        await asyncio.sleep(0.01)
        return self.addresses()

    async def client(self, name: str) -> Cluster:
        """A client in a process of its own would need its callers there: this one runs where it is called."""
        client = Client(
            self.app.name,
            self.addresses(),
            token=self.token,
            settings=self.settings,
            world=self.simulation.world(name),
            network=self.simulation.network,
            rejections=self.app.rejections,
            discover=self.discover,
        )
        await client.open(30)
        return Cluster(client)


class History:
    """What clients did and were told, and whether that can be."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.without_effect: set[str] = set()
        self.unknown: set[str] = set()
        self.issued: dict[str, list[str]] = defaultdict(list)
        """(client, entity) -> tokens in the order sent"""
        self.reads: list[tuple[str, dict[str, int], list[str]]] = []

    async def append(self, entity: str, ref: Any, token: str, who: str, method: str, *args: Any) -> None:
        self.issued[f"{who} {entity}"].append(token)
        try:
            index = await getattr(ref, method)(token, *args)
        except (atoll.Rejected, atoll.HandlerFailed, atoll.NotExecuted):
            self.without_effect.add(token)
        except atoll.OutcomeUnknown:
            self.unknown.add(token)
        else:
            self.acknowledged[token] = (entity, index)

    async def append_until_known(self, entity: str, ref: Any, token: str) -> None:
        """Under a command ID, repeated as an unknown outcome asks for; two copies at once to begin with."""
        append = ref.append.using(command_id=f"id of {token}", timeout=3.0)
        while True:
            answers = await asyncio.gather(append(token), append(token), return_exceptions=True)
            known = {answer for answer in answers if isinstance(answer, int)}
            assert len(known) <= 1, f"one command ID, two answers: {answers}"
            for answer in answers:
                assert isinstance(answer, int | atoll.OutcomeUnknown | atoll.NotExecuted), answer
            if known:
                self.acknowledged[token] = (entity, known.pop())
                return

    async def read(self, entity: str, ref: Any) -> None:
        before = {t: i for t, (e, i) in self.acknowledged.items() if e == entity}
        try:
            items = await ref.read()
        except atoll.NotExecuted:
            return
        self.reads.append((entity, before, items))

    def check(self, final: dict[str, list[str]]) -> None:
        place = {}
        for entity, items in final.items():
            for index, token in enumerate(items):
                assert token not in place, f"doubled: {token} in {entity} at {place[token]} and {index}"
                place[token] = (entity, index)
        for token, where in self.acknowledged.items():
            assert place.get(token) == where, f"lost: {token} acknowledged at {where}, found at {place.get(token)}"
        for token in self.without_effect:
            assert token not in place, f"{token} was refused but stands at {place[token]}"
        strangers = set(place) - set(self.acknowledged) - self.unknown
        assert not strangers, f"nobody appended {strangers}"
        for key, tokens in self.issued.items():
            order = [place[token][1] for token in tokens if token in place]
            assert order == sorted(order), f"reordered: {key} {[(t, place.get(t)) for t in tokens]}"
        for entity, before, items in self.reads:
            assert items == final[entity][: len(items)], f"read of {entity} saw what is not there: {items}"
            for token, index in before.items():
                assert len(items) > index, f"stale read of {entity}: {token} at {index} was acknowledged before it"
