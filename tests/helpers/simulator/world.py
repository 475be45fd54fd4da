"""The `World` (actors/world.py) of one process of the simulation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from .loop import VirtualTimeLoop

_EPOCH_MS = 1_700_000_000_000


class SimWorld:
    """Clock, luck and tasks of one process, all from the loop's seed and the process's name."""

    def __init__(self, loop: VirtualTimeLoop, name: str, *, wall_offset_ms: int = 0) -> None:
        """`wall_offset_ms`: how wrong this process's wall clock is; may be changed at any time (a clock step)."""
        self.wall_offset_ms = wall_offset_ms
        self._loop = loop
        self._random = random.Random(f"{loop.seed}/world/{name}")
        self._entropy = random.Random(f"{loop.seed}/entropy/{name}")

    @property
    def random(self) -> random.Random:
        return self._random

    def monotonic(self) -> float:
        return self._loop.time()

    def wall_ms(self) -> int:
        return _EPOCH_MS + int(self._loop.time() * 1000) + self.wall_offset_ms

    def entropy(self, size: int) -> bytes:
        return self._entropy.randbytes(size)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """The loop keeps the task; an error that nobody fetches fails the simulation."""
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.failures.append(error)
