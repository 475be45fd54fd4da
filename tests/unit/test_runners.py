"""Turns that might wait and do not: their runner lets the loop look at its sockets all the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

from atoll.sharding.turns import PUMP_S, Turns

TURN_S = PUMP_S / 4
RESIDENTS = 100


class World:
    def __init__(self) -> None:
        self.random = random.Random(1)
        self.now = 0.0
        self._tasks: list[asyncio.Task[Any]] = []

    def monotonic(self) -> float:
        return self.now

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task


class Performer:
    """Every turn has to be awaited, takes its time, and does not suspend."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.round = 0
        self.turns_of_round = Counter[int]()
        self.over = asyncio.Event()

    def drain(self, resident: Any) -> bool:
        return False

    async def perform(self, resident: Any) -> None:
        self._world.now += TURN_S
        self.turns_of_round[self.round] += 1
        if self.turns_of_round.total() == RESIDENTS:
            self.over.set()


async def test_a_runner_that_never_waits_gives_way_after_its_slice() -> None:
    """R05: what it makes is sent before it makes more, and what is dropped meanwhile is freed."""
    world = World()
    performer = Performer(world)
    turns = Turns(performer, world, 4096, lambda _: None, lambda: None)  # type: ignore[arg-type]  # no more is used
    for number in range(RESIDENTS):
        call = SimpleNamespace(client=number)
        turns.ready(SimpleNamespace(kind=SimpleNamespace(turns_max=None), mailbox=deque([call]), lane=1, in_lane=None))  # type: ignore[arg-type]  # as above
    async with asyncio.timeout(30):
        while not performer.over.is_set():
            await asyncio.sleep(0)
            performer.round += 1
    turns.stop()
    assert performer.turns_of_round.total() == RESIDENTS
    assert max(performer.turns_of_round.values()) <= 2 * (PUMP_S / TURN_S + 1), (
        "more than the pump and a runner have in a round"
    )
