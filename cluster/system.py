"""The real world: this machine's clocks and luck, and tasks of the running loop. The counterpart on virtual time
stands with the tests' simulator; nothing below `cluster` knows either of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class SystemWorld:
    """Implements `World` (actors/world.py)."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))  # noqa: S311 - jitter and sampling; secrets come from entropy()
        # The loop itself holds its tasks only weakly: without this set a running one could be collected.
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def random(self) -> random.Random:
        return self._random

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s ended with an unexpected error", task.get_name(), exc_info=error)
