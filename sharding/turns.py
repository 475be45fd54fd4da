"""Who runs next: plain handlers in a loop, async ones in a few long-lived runner tasks.

A task per command would double the cost of the whole path, and driving a coroutine by hand breaks `asyncio.timeout` and
`TaskGroup`. So an async turn is awaited by a runner, a real task that lives on: as long as handlers do not suspend, one
runner goes through all of them; when one suspends, the next runner takes over what waits.

    ready --(plain)-----> run in the pump, several turns of one entity in a row
      ^   `-(must wait)-> waiting --> an idle runner --> runs, and the plain ones behind it
      `------ quota of turns used ------'

Which of the ready ones is next, ready.py says. A kind may bound how many of its turns wait at once (`turns_max`), so
that those that call something slow outside leave the runners to the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..actors.kind import EntityKind
from ..actors.world import World
from .ready import ReadyQueue
from .resident import Resident

PUMP_RESIDENTS = 64
"""Entities served before the loop may look at its sockets again; or fewer:"""
PUMP_S = 0.005
"""After so long it looks again, and nobody waits longer for what is to come in: priorities are for what is known. What
is sent meanwhile leaves then, and the memory of who is dropped for not taking it comes back."""


class Performer(Protocol):
    def drain(self, resident: Resident) -> bool:
        """Run turns that need not wait. True: it is idle, or has been made ready again; False: it must wait."""
        ...

    async def perform(self, resident: Resident) -> None:
        """Run the turn that must wait, and what comes behind it."""
        ...


class Turns:
    def __init__(
        self,
        performer: Performer,
        world: World,
        runners_max: int,
        broken: Callable[[BaseException], None],
        quiet: Callable[[], None],
    ) -> None:
        """`broken` hears of an error that is not a handler's but ours: the host must end, not limp on. `quiet` is
        called when everything that was ready has had its turn: what is queued now stands behind a turn that waits."""
        self._performer = performer
        self._world = world
        self._broken = broken
        self._quiet = quiet
        self._runners_max = runners_max
        self._ready = ReadyQueue()
        self._waiting: deque[Resident] = deque()
        self._taken: dict[EntityKind, int] = {}
        """Of kinds with a limit: turns that may wait, now."""
        self._aside: dict[EntityKind, deque[Resident]] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._runners = 0
        self._pump_due = False
        self._handover_due = False
        self._until = 0.0
        """When a runner that did not suspend lets the loop look."""
        self._stopped = False
        self.held = False
        """No turn begins."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Begin no further turn, and let the runners go. They are not cancelled: a handler would swallow that."""
        self._stopped = True
        self._ready.clear()
        self._waiting.clear()
        self._aside.clear()
        for rest in self._idle:
            rest.set_result(None)
        self._idle.clear()

    def hold(self, held: bool) -> None:
        """Begin no turn until this is called with False. Those that wait inside go on."""
        self.held = held
        if not held and not self._stopped:
            self.nudge()

    def ready(self, resident: Resident) -> None:
        """It has a command to run. Called once per scheduling (`resident.scheduled`)."""
        if self._stopped:
            return
        self._ready.push(resident)
        self.nudge()

    def schedule(self, resident: Resident) -> None:
        """It has something to run: see to it, unless that is done already."""
        if not resident.scheduled:
            resident.scheduled = True
            self.ready(resident)
        elif resident.in_lane is not None and resident.lane < resident.in_lane:
            self.ready(resident)

    def nudge(self) -> None:
        """Look whether there is something to run, and call `quiet` if not."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self.held:
            return
        ready = self._ready
        until = self._world.monotonic() + PUMP_S
        try:
            for _ in range(min(len(ready), PUMP_RESIDENTS)):
                resident = ready.pop()
                if resident is None:
                    break
                if not self._performer.drain(resident):
                    self._waiting.append(resident)
                if self._world.monotonic() > until:
                    break
        except Exception as error:  # noqa: BLE001 - handlers' errors end in results: this one is a bug of ours
            self._broken(error)
            return
        if ready and not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)
        if self._waiting:
            self._hand_over()
        elif not ready:
            self._quiet()

    def _hand_over(self) -> None:
        """Give what waits to a runner, and look again after its step: if it suspended, to the next one."""
        self._handover_due = False
        self._until = self._world.monotonic() + PUMP_S
        if self.held:
            return
        if not self._waiting:
            if not self._ready:
                self._quiet()
            return
        if self._idle:
            self._idle.pop().set_result(None)
        elif self._runners < self._runners_max:
            self._runners += 1
            self._world.spawn(self._runner(), f"atoll-runner-{self._runners}")
        else:
            self._quiet()
            return  # a runner that ends its turn will take the next
        self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        if not self._handover_due:
            self._handover_due = True
            self._loop.call_soon(self._hand_over)

    # ---- bulkheads -------------------------------------------------------------------------------------------------

    def _next_waiting(self) -> Resident | None:
        """Who goes into a turn that may wait; those of a kind that has all its places taken stand aside."""
        while self._waiting:
            resident = self._waiting.popleft()
            limit = resident.kind.turns_max
            if limit is None:
                return resident
            taken = self._taken.get(resident.kind, 0)
            if taken < limit or _is_waited_for(resident):
                self._taken[resident.kind] = taken + 1
                return resident
            self._aside.setdefault(resident.kind, deque()).append(resident)
        return None

    def _place_free(self, kind: EntityKind) -> None:
        self._taken[kind] -= 1
        aside = self._aside.get(kind)
        if aside and self._taken[kind] < (kind.turns_max or 0):
            self._waiting.append(aside.popleft())

    async def _runner(self) -> None:
        while not self._stopped:
            while not self.held and (resident := self._next_waiting()) is not None:
                try:
                    await self._performer.perform(resident)
                except Exception as error:  # noqa: BLE001 - as in the pump
                    self._broken(error)
                    return
                if resident.kind.turns_max is not None:
                    self._place_free(resident.kind)
                if self._world.monotonic() > self._until:
                    self._hand_over_soon()
                    break
            if not self._stopped:
                rest: asyncio.Future[None] = self._loop.create_future()
                self._idle.append(rest)
                await rest


def _is_waited_for(resident: Resident) -> bool:
    """One of its kind that has a place waits for its next command: the two must not wait for each other."""
    mailbox = resident.mailbox
    return bool(mailbox) and any(each.partition("/")[0] == resident.kind.name for each in mailbox[0].call.chain)
