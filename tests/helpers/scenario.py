"""Scripted scenarios on virtual time: real hosts over one memory store, where the script says what the store does when.

`SimCluster` has luck in it, a `Scenario` has none: each process has a `ScriptedStore` of its own, whose calls are written
down and may be held or lost, and shards go where the script gives them. A `RawClient` speaks to a host without a client
library, so that a script can repeat, reorder and delay what a well-behaved client would not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from sim_cluster import SimCluster
from simulator.simulation import Simulation

import atoll
from atoll.actors.calls import Mode, Status
from atoll.actors.errors import StoreUnavailable
from atoll.persistence.memory import MemoryStore
from atoll.persistence.records import Record, decode_batch
from atoll.persistence.spi import Assignment, LogRow, ShardRow
from atoll.sharding.hashing import shard_of
from atoll.sharding.host import Host
from atoll.sharding.messages import Answer, Call, Message, Moved, OutOfOrder


class Box(atoll.Entity):
    """Keeps what is put into it; the reply to `put` is the place."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def put(self, item: str) -> int:
        self.items.append(item)
        return len(self.items) - 1

    @atoll.command
    async def put_slowly(self, item: str, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.items.append(item)
        return len(self.items) - 1

    @atoll.command
    def put_if_even(self, item: str) -> int:
        if len(self.items) % 2:
            raise atoll.Rejected(f"odd: {len(self.items)}")
        self.items.append(item)
        return len(self.items) - 1

    @atoll.command
    def put_and_fail(self, item: str) -> int:
        self.items.append(item)
        raise RuntimeError("on purpose")

    @atoll.command
    def count(self) -> int:
        """A command that changes nothing."""
        return len(self.items)

    @atoll.command
    def clear(self) -> None:
        self.context.delete()

    @atoll.command
    def put_and_leave(self, item: str) -> int:
        self.items.append(item)
        self.context.passivate()
        return len(self.items) - 1

    @atoll.query
    def read(self) -> list[str]:
        return self.items


@dataclass(frozen=True)
class Put:
    item: str


class Ledger(atoll.EventSourced):
    """The same from events."""

    items: list[str] = atoll.field(default_factory=list)
    puts: int = 0

    @atoll.command
    def put(self, item: str) -> int:
        self.emit(Put(item))
        return self.puts - 1

    @atoll.command
    def put_and_leave(self, item: str) -> int:
        self.emit(Put(item))
        self.context.passivate()
        return self.puts - 1

    @atoll.command
    def put_and_fail(self, item: str) -> int:
        self.emit(Put(item))
        raise RuntimeError("on purpose")

    @atoll.command
    def clear(self) -> None:
        self.context.delete()

    @atoll.query
    def read(self) -> list[str]:
        return self.items

    @atoll.query
    def total(self) -> int:
        return self.puts

    @atoll.apply
    def _put(self, event: Put) -> None:
        self.puts += 1
        self.items = [*self.items[-99:], event.item]


QUIET = {"shards": 1, "checkpoint_s": 3600.0, "session_touch_s": 3600.0, "store_poll_s": 0.05}
"""Nothing happens by itself: the script checkpoints, gives and takes."""


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    """Wait (virtual seconds) until `condition()` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is anything at all; on virtual time looking is free
            await asyncio.sleep(0.001)


class Hold:
    """Calls of one name that wait where the script wants them to."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._open = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def reached(self) -> None:
        """Wait until a call is held."""
        await until(lambda: self._waiting)

    def let_one_go(self) -> None:
        """Let the one that has waited longest go on."""
        self._waiting.pop(0).set_result(None)

    def let_go(self) -> None:
        """Let those that wait, and all later ones, go on."""
        self._open = True
        while self._waiting:
            self.let_one_go()

    async def wait(self) -> None:
        if not self._open:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:  # its caller gave up
                    self._waiting.remove(turn)


class ScriptedStore:
    """A `Store`: what is kept is the memory store's business, what becomes of the calls is the script's."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.down = False
        """Every call fails before it took effect."""
        self._before: dict[str, Hold] = {}
        self._after: dict[str, Hold] = {}
        self._lost: dict[str, int] = {}
        self._lost_replies: dict[str, int] = {}

    def hold(self, name: str) -> Hold:
        """From now on calls of `name` wait before they take effect."""
        self._before[name] = hold = Hold()
        return hold

    def hold_reply(self, name: str) -> Hold:
        """From now on calls of `name` take effect, and their answers wait."""
        self._after[name] = hold = Hold()
        return hold

    def holds(self, name: str) -> bool:
        return name in self._before

    def unhold(self, name: str) -> None:
        """Let all held calls of `name` go, and hold no more."""
        for held in (self._before.pop(name, None), self._after.pop(name, None)):
            if held is not None:
                held.let_go()

    def lose(self, name: str, times: int = 1) -> None:
        """The next `times` calls fail before they take effect."""
        self._lost[name] = times

    def lose_reply(self, name: str, times: int = 1) -> None:
        """The next `times` calls take effect, and fail all the same."""
        self._lost_replies[name] = times

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.0005)
            self.calls.append((name, args))
            if self.down:
                raise StoreUnavailable(f"{name}: the store is down")
            if name in self._before:
                await self._before[name].wait()
            if self._lost.get(name, 0):
                self._lost[name] -= 1
                raise StoreUnavailable(f"{name}: lost on the way there")
            result = await method(*args, **kwargs)
            if self._lost_replies.get(name, 0):
                self._lost_replies[name] -= 1
                raise StoreUnavailable(f"{name}: lost on the way back")
            if name in self._after:
                await self._after[name].wait()
            return result

        return call


class Scenario(SimCluster):
    def __init__(self, simulation: Simulation, *kinds: type[atoll.Entity], **settings: Any) -> None:
        app = atoll.App("rules", entities=list(kinds) or [Box, Ledger], settings=QUIET | settings)
        super().__init__(simulation, app=app)
        self.stores: dict[int, ScriptedStore] = {}
        self._newest_store: ScriptedStore | None = None

    def weak_store(self) -> ScriptedStore:
        self._newest_store = ScriptedStore(self.store)
        return self._newest_store

    def start_coordinator(self, hosts_wanted: int = 1) -> None:
        super().start_coordinator(hosts_wanted)
        assert self._newest_store is not None
        self.coordinator_store = self._newest_store

    async def host(self, *shards: int) -> Host:
        """Start a host and give it these shards."""
        incarnation = await self.start_host()
        assert self._newest_store is not None
        self.stores[incarnation] = self._newest_store
        host = self.running[incarnation].host
        if shards:
            await self.give(host, *shards)
        return host

    async def give(self, host: Host, *shards: int) -> None:
        """What a coordinator would decide; returns when the host serves them."""
        await self.assign(host, *shards)
        await until(lambda: all(shard in host.shards for shard in shards))

    async def assign(self, host: Host, *shards: int) -> None:
        rows = await self.store.shards()
        assignments = [Assignment(shard, rows[shard].epoch, host.incarnation) for shard in shards]
        assert await self.store.assign(assignments) == set(shards)
        host.ownership.poke()

    async def move(self, to: Host, *shards: int) -> None:
        """Say where shards are wanted; their owners see to it."""
        rows = await self.store.shards()
        moves = [Assignment(shard, rows[shard].epoch, to.incarnation) for shard in shards]
        assert await self.store.move(moves) == set(shards)
        for running in self.running.values():
            running.host.ownership.poke()

    async def fail_over(self, dead: Host, to: Host, *shards: int) -> None:
        """Kill a host, and give what it had to another one."""
        self.kill(dead)
        await self.condemn(dead)
        await self.give(to, *shards)

    def kill(self, host: Host) -> None:
        self.hosts[host.incarnation].kill()

    async def condemn(self, host: Host) -> None:
        renewals = {row.incarnation: row.renewals for row in await self.store.hosts()}
        assert await self.store.condemn(host.incarnation, renewals[host.incarnation])

    def store_of(self, host: Host) -> ScriptedStore:
        return self.stores[host.incarnation]

    async def row(self, shard: int = 0) -> ShardRow:
        return (await self.store.shards())[shard]

    async def log(self, host: Host) -> list[LogRow]:
        return await self.store.read_log(host.incarnation)

    async def records(self, host: Host) -> list[Record]:
        """What stands in a host's log."""
        rows = await self.log(host)
        return [record for row in rows for record in decode_batch(row.content, host.incarnation, row.n)]

    def raw_client(self, client: int, host: Host, generation: int = 1, *, kind: type[atoll.Entity] = Box) -> RawClient:
        """`kind`: of the entities that it calls, unless a call says otherwise."""
        raw = RawClient(self, client, generation, kind)
        raw.connect(host)
        return raw


class RawClient:
    """Implements `Peer` (sharding/messages.py): sends what the script says, and keeps what it hears."""

    def __init__(self, scenario: Scenario, client: int, generation: int = 1, kind: type[atoll.Entity] = Box) -> None:
        self.client = client
        self.generation = generation
        self.heard: list[Message] = []
        self.closed = ""
        self.held = False
        """It is not read from. What the script sends arrives all the same."""
        self._scenario = scenario
        self._kind = kind
        self._host: Host | None = None

    # ---- Peer

    def send(self, message: Message) -> None:
        if not self.closed:
            self.heard.append(message)

    def reply(self, call: Call, message: Message) -> None:
        self.send(message)

    def forget(self, call: Call) -> None:
        pass

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def close(self, reason: str) -> None:
        self.closed = reason

    # ---- the script's side

    def connect(self, host: Host) -> None:
        self._host = host
        self._inside(host, lambda: host.connected(self))

    def call(
        self,
        number: int,
        method: str,
        /,
        *,
        kind: type[atoll.Entity] | None = None,
        id: str = "a",
        floor: int = 1,
        prev: int = 0,
        attempt: int = 1,
        remaining_ms: int = 10_000,
        command_id: str = "",
        mode: Mode = Mode.ASK,
        chain: tuple[str, ...] = (),
        sender: int = 0,
        sender_epoch: int = 0,
        priority: int = 0,
        **arguments: Any,
    ) -> None:
        """Let a call arrive at the host: now, whatever the network would do."""
        host = self._host
        assert host is not None
        encoded = msgspec.msgpack.encode(arguments)
        message = Call(
            shard_of(id, self._scenario.settings.shards),
            number,
            floor,
            prev,
            attempt,
            mode,
            (kind or self._kind).__name__,
            id,
            method,
            encoded,
            remaining_ms,
            command_id,
            chain,
            sender,
            sender_epoch,
            priority,
        )
        self._inside(host, lambda: host.received(self, [message]))

    def _inside(self, host: Host, act: Callable[[], None]) -> None:
        """In the host's process, so that a kill stops what it starts."""
        self._scenario.hosts[host.incarnation].context.copy().run(act)

    def tell(self, number: int, method: str, /, **more: Any) -> None:
        self.call(number, method, mode=Mode.TELL, **more)

    async def accepted(self, number: int) -> None:
        """Wait until a tell is accepted."""
        assert await self.answer(number) == (Status.OK, None), self.heard[-1]

    def answers(self, number: int) -> list[tuple[Status, Any]]:
        """All answers to a number so far: (status, value), the value None for what is no result."""
        return [
            (Status(m.status), msgspec.msgpack.decode(m.payload) if m.status == Status.OK and m.payload else None)
            for m in self.heard
            if isinstance(m, Answer) and m.number == number
        ]

    def told(self, what: type[Moved | OutOfOrder]) -> list[int]:
        """The numbers that were bounced so."""
        return [m.number for m in self.heard if type(m) is what]

    async def answer(self, number: int) -> tuple[Status, Any]:
        """Wait for an answer to a number; return the newest."""
        await until(lambda: self.answers(number))
        return self.answers(number)[-1]

    async def ask(self, number: int, method: str, /, **more: Any) -> Any:
        """Call, and return the result, which must be OK."""
        before = len(self.answers(number))
        self.call(number, method, **more)
        await until(lambda: len(self.answers(number)) > before)
        status, value = self.answers(number)[-1]
        assert status is Status.OK, self.heard[-1]
        return value


@contextmanager
def scenario(*kinds: type[atoll.Entity], **settings: Any) -> Iterator[tuple[Simulation, Scenario]]:
    with Simulation("rules") as simulation:
        yield simulation, Scenario(simulation, *kinds, **settings)


def play(script: Callable[[Scenario], Any], *kinds: type[atoll.Entity], **settings: Any) -> Any:
    """Run a script in a fresh simulation with an opened store."""

    async def opened() -> Any:
        await story.open()
        return await script(story)

    with scenario(*kinds, **settings) as (simulation, story):
        return simulation.run(opened())
