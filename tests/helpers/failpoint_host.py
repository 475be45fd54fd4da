"""Host processes that SIGKILL themselves at a chosen step of the commit path, the n-th time that they get there.

    python failpoint_host.py SOCKET      listens there; each connection is a host of its own, in a process forked for it

Forked, because importing takes longer than all that a host does before it serves, and a case kills several. Over its
connection a host reads a `Birth`, then `Order`s, and answers with JSON lines: that it is ready, and what it counts.
Without the other end it ends. Where it dies it writes into a file: of a connection that breaks off, the last words can
be lost.

The failpoints are outside of the product: a store around the store, a courier in place of the courier, and methods that
are wrapped before the host is made. A `Birth` can also name a mutation: a rule of delivery that is left out, to see that
the tests notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import asyncpg  # noqa: F401 - imported before the fork, as all that follows
import msgspec
import uvloop  # noqa: F401 - the same

from atoll.actors.calls import Mode
from atoll.cluster import host_process, hosting
from atoll.cluster.courier import HostCourier
from atoll.cluster.hosting import RunningHost
from atoll.cluster.lanes import Stream
from atoll.persistence.open import open_store
from atoll.persistence.records import Delivery, Record, decode_batch
from atoll.persistence.spi import TableWrite
from atoll.sharding.accepting import Accepting
from atoll.sharding.gate import OutputGate
from atoll.sharding.host import Host
from atoll.sharding.outbox import Outbox
from atoll.sharding.owed import Owed
from atoll.sharding.window import Verdict, Window

LINGER_S = 0.005
"""How long a host lives on before the append that it dies in: what may not leave before a commit would leave now."""
MUTE_S = 0.03
"""How long at most it lives on with messages that it does not send: long enough for what must not be committed now."""

PARTS: dict[str, Callable[[Delivery], object]] = {
    "acceptances": lambda delivery: delivery.accepted,
    "done marks": lambda delivery: delivery.done,
    "attempts": lambda delivery: delivery.attempts,
    "messages": lambda delivery: delivery.outbox,
    "acknowledgements": lambda delivery: delivery.delivered,
    "timers": lambda delivery: delivery.timers or delivery.timers_gone,
}
ROWS = {"messages": "outbox_done", "mailbox entries": "mailbox_done", "timers": "timers_gone"}
"""What a checkpoint deletes, by the field of a `TableWrite`."""

STEPS = {
    **{f"append of {part}: {when}": 12 for part in PARTS for when in ("before", "after", "before the answers leave")},
    "message: before it is sent": 12,
    "message: sent": 12,
    "message: its acknowledgement came": 12,
    "message: before its acknowledgement is recorded": 12,
    **{f"checkpoint that deletes {rows}: {when}": 2 for rows in ROWS for when in ("before", "after")},
    "checkpoint that ends: before": 8,
    "checkpoint that ends: after": 8,
    "checkpoint that gives back: before": 2,
    "checkpoint that gives back: after": 2,
    "timer: before its tick is queued": 8,
    "timer: before its tick runs": 8,
    "recovery: claimed": 1,
    "recovery: sealed": 1,
    "recovery: before pending work is read": 1,
    "recovery: after pending work is read": 1,
    "recovery: windows are read": 1,
    "recovery: before a shard opens": 1,
    "recovery: after a shard opened": 1,
}
"""Where a host can be told to die -> the n-th time that it gets there, at most."""


class Birth(msgspec.Struct):
    """What a host begins with."""

    spec: host_process.HostSpec
    seed: int
    last_words: str
    """The file."""
    mutation: str = ""


class Order(msgspec.Struct):
    """Die when you get to `step` for the `nth` time from now. Without a step: forget that, and say what you count."""

    step: str = ""
    nth: int = 0
    give_back: bool = False
    """Nothing of that: give back all shards, as for a handoff."""


class Failpoint:
    """The one at which this host is to die, if any."""

    def __init__(self, birth: Birth) -> None:
        self._last_words = Path(birth.last_words)
        self._luck = random.Random(birth.seed)
        self._left = 0
        self.step = ""
        self.dying = False
        """It is decided."""
        self.mute = False
        """Messages are not sent any more."""
        self.deaf = False
        """Nor are their acknowledgements heard."""

    def order(self, order: Order) -> None:
        self.step, self._left = order.step, order.nth

    def reached(self, step: str) -> bool:
        """It is time."""
        if step != self.step or self.dying:
            return False
        self._left -= 1
        self.dying = self._left == 0
        return self.dying

    def here(self, step: str) -> None:
        if self.reached(step):
            self.die()

    def die(self) -> NoReturn:
        self._last_words.write_text(self.step)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives that")

    def die_later(self, at_most_s: float) -> None:
        asyncio.get_running_loop().call_later(self._luck.uniform(at_most_s / 3, at_most_s), self.die)


# ---- the failpoints


class FailpointStore:
    """A `Store` around another one."""

    def __init__(self, store: Any, failpoint: Failpoint) -> None:
        self._store = store
        self._failpoint = failpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        failpoint, parts = self._failpoint, list[str]()
        if failpoint.step.startswith("append"):
            parts = list(parts_of(decode_batch(content, incarnation, n)))
        for part in parts:
            if failpoint.reached(f"append of {part}: before"):
                await asyncio.sleep(LINGER_S)
                failpoint.die()
        await self._store.append(incarnation, n, content)
        for part in parts:
            failpoint.here(f"append of {part}: after")

    async def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        kinds = [f"deletes {rows}" for rows, field in ROWS.items() if any(getattr(write, field) for write in writes)]
        ends = [write.end for write in writes if write.end is not None]
        kinds += ["gives back" if end.release else "ends" for end in ends]
        for kind in kinds:
            self._failpoint.here(f"checkpoint that {kind}: before")
        refused = await self._store.checkpoint(incarnation, writes)
        for kind in kinds:
            self._failpoint.here(f"checkpoint that {kind}: after")
        return refused

    async def claim(self, incarnation: int, claims: Any) -> Any:
        rows = await self._store.claim(incarnation, claims)
        if rows:
            self._failpoint.here("recovery: claimed")
        return rows

    async def seal(self, incarnation: int) -> int:
        n = await self._store.seal(incarnation)
        self._failpoint.here("recovery: sealed")
        return n

    async def read_pending(self, shards: Sequence[int]) -> Any:
        self._failpoint.here("recovery: before pending work is read")
        work = await self._store.read_pending(shards)
        self._failpoint.here("recovery: after pending work is read")
        return work

    async def read_clients(self, shard: int) -> Any:
        rows = await self._store.read_clients(shard)
        self._failpoint.here("recovery: windows are read")
        return rows


def parts_of(records: Sequence[Record]) -> Iterator[str]:
    deliveries = [record.delivery for record in records if record.delivery is not None]
    return (part for part, has in PARTS.items() if any(has(delivery) for delivery in deliveries))


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Let `around(method, self, *args)` take the place of a method."""
    method = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **named: around(method, self, *args, **named))


def install(failpoint: Failpoint) -> None:
    """Put failpoints into everything that a host will be made of."""

    class FailpointCourier(HostCourier):
        def carry(self, *args: Any) -> None:
            if failpoint.reached("message: before it is sent"):
                failpoint.mute = True
                failpoint.die_later(MUTE_S)
            if not failpoint.mute:
                super().carry(*args)

        def _answered(self, link: Any, answer: Any) -> None:
            failpoint.here("message: its acknowledgement came")
            if not failpoint.deaf:
                super()._answered(link, answer)

    def call(method: Any, stream: Stream, *args: Any) -> Any:
        if failpoint.reached("message: sent"):
            failpoint.deaf = True
            failpoint.die_later(LINGER_S)  # it leaves at the end of this tick of the loop
        return method(stream, *args)

    def arrived(method: Any, outbox: Outbox, *args: Any) -> None:
        method(outbox, *args)
        failpoint.here("message: before its acknowledgement is recorded")

    def committed(method: Any, host: Host, n: int, records: list[Record], sizes: list[int]) -> None:
        method(host, n, records, sizes)
        if failpoint.step.startswith("append"):
            for part in parts_of(records):
                failpoint.here(f"append of {part}: before the answers leave")

    def fire(method: Any, owed: Owed, *args: Any) -> Any:
        failpoint.here("timer: before its tick is queued")
        fired = method(owed, *args)
        if fired:
            failpoint.here("timer: before its tick runs")
        return fired

    def opened(method: Any, host: Host, *args: Any) -> None:
        failpoint.here("recovery: before a shard opens")
        method(host, *args)
        failpoint.here("recovery: after a shard opened")

    host_process.open_store = lambda url: FailpointStore(open_store(url), failpoint)
    hosting.HostCourier = FailpointCourier
    wrap(Stream, "call", call)
    wrap(Outbox, "_arrived", arrived)
    wrap(Host, "_committed", committed)
    wrap(Host, "opened", opened)
    wrap(Owed, "fire", fire)


# ---- mutations: a rule of delivery that is left out


def admit_what_is_known() -> None:
    """The window lets a number in again that it knows."""

    def admit(method: Any, window: Window[Any], *args: Any) -> Verdict:
        verdict = method(window, *args)
        known = (Verdict.ANSWERED, Verdict.PENDING, Verdict.BELOW_FLOOR)
        return Verdict.NEW if verdict in known else verdict

    wrap(Window, "admit", admit)


def answer_before_the_commit() -> None:
    """A tell or message is answered when its record is staged."""

    def effect(method: Any, gate: OutputGate, ticket: int, pending: Any, answer: Any) -> None:
        method(gate, 0 if pending.call.mode == Mode.TELL else ticket, pending, answer)

    wrap(OutputGate, "effect", effect)


def acknowledge_what_was_not_acknowledged() -> None:
    """A message counts as delivered when it is sent."""

    def carry(method: Any, outbox: Outbox, shard: Any, number: int, message: Any, **named: Any) -> None:
        method(outbox, shard, number, message, **named)
        outbox._arrived(shard, number)

    wrap(Outbox, "_carry", carry)


def run_what_is_done() -> None:
    """No record says that an accepted entry is done."""

    def record(method: Any, owed: Owed, resident: Any, delivery: Delivery, *args: Any) -> Any:
        delivery.done = 0
        return method(owed, resident, delivery, *args)

    wrap(Owed, "_record", record)


def keep_timers_that_fired() -> None:
    """The record of a tick leaves its timer where it is."""
    wrap(Owed, "_tick_over", lambda *_: None)


def accept_past_earlier_commands() -> None:
    """A tell is accepted though an earlier command of its sender waits."""
    wrap(
        Accepting,
        "_accept_one",
        lambda method, accepting, resident, pending, _: method(accepting, resident, pending, set()),
    )


MUTATIONS = {
    mutate.__name__: mutate
    for mutate in (
        admit_what_is_known,
        answer_before_the_commit,
        accept_past_earlier_commands,
        acknowledge_what_was_not_acknowledged,
        run_what_is_done,
        keep_timers_that_fired,
    )
}


# ---- the process


def live(birth: Birth, control: socket.socket) -> None:
    logging.basicConfig(level=logging.ERROR)  # failures that are tried again are part of the load
    failpoint = Failpoint(birth)
    install(failpoint)
    if birth.mutation:
        MUTATIONS[birth.mutation]()

    def ready(running: RunningHost) -> None:
        asyncio.get_running_loop().add_reader(control, obey, control, failpoint, running.host)
        say(control, pid=os.getpid(), incarnation=running.incarnation, address=running.address)

    host_process.run_loop(host_process.run_host(birth.spec, ready))


def say(control: socket.socket, **what: Any) -> None:
    control.send(msgspec.json.encode(what) + b"\n")


def obey(control: socket.socket, failpoint: Failpoint, host: Host) -> None:
    text = control.recv(10_000)
    if not text:
        os._exit(0)
    for line in text.splitlines():
        if failpoint.dying:
            return  # it has no more to say
        order = msgspec.json.decode(line, type=Order)
        if order.give_back:
            for shard in list(host.shards):
                host._world.spawn(host.ownership.release(shard), "give back")
            continue
        failpoint.order(order)
        if not order.step:
            say(
                control,
                uncommitted=host.commits.staged - host.commits.committed,
                messages=host._staging.messages,
                message_bytes=host._staging.bytes,
                entries_in_memory=host._holdings.in_memory,
                entries_stored=host._holdings.stored,
                ticks=sum(host._timers._in_flight.values()),
                dead_letters=sum(shard.dead_letters for shard in host.shards.values()),
            )


class OneHost(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        live(msgspec.json.decode(self.rfile.readline(), type=Birth), self.request)


class Hosts(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = 1000
    block_on_close = False

    def __init__(self, path: str) -> None:
        super().__init__(path, OneHost)
        self._parent = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()  # reaps the dead
        if os.getppid() != self._parent:
            sys.exit("the test is gone")


if __name__ == "__main__":
    with Hosts(sys.argv[1]) as server:
        print("ready", flush=True)  # noqa: T201 - said to the test
        server.serve_forever(poll_interval=0.05)
