"""Deadlines of commands: looked at from time to time, since a timer per command would cost more than the command."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..actors.world import World
from .lanes import OutgoingCommand
from .pace import Lag

LOOK_S = 0.02
"""How exactly deadlines are kept."""


class Deadlines:
    def __init__(self, world: World, passed: Callable[[OutgoingCommand], None]) -> None:
        """`passed`: told of a command that is not done when its `gives_up` has come."""
        self._world = world
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._queues: dict[int, deque[OutgoingCommand]] = {}
        """By time-out (in looks, so that there are few), which keeps each in order of `gives_up`."""
        self._look: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.lag = Lag()

    def watch(self, timeout_s: float, out: OutgoingCommand) -> None:
        """`out.gives_up` is `timeout_s` from now."""
        looks = int(timeout_s / LOOK_S)
        queue = self._queues.get(looks)
        if queue is None:
            queue = self._queues[looks] = deque()
        while queue and queue[0].done.done():
            queue.popleft()
        queue.append(out)
        if self._look is None:
            self._look_later(self._world.monotonic())

    def stop(self) -> None:
        self._queues.clear()
        if self._look is not None:
            self._look.cancel()

    def _look_at_all(self) -> None:
        now = self._world.monotonic()
        self.lag.seconds = max(0.0, now - self._due)
        for looks, queue in list(self._queues.items()):
            while queue and (queue[0].done.done() or queue[0].gives_up <= now):
                out = queue.popleft()
                if not out.done.done():
                    self._passed(out)
            if not queue:
                del self._queues[looks]
        self._look = None
        if self._queues:
            self._look_later(now)

    def _look_later(self, now: float) -> None:
        self._due = now + LOOK_S
        self._look = self._loop.call_later(LOOK_S, self._look_at_all)
