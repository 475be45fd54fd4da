"""What the code may know of the world outside: time, luck and tasks.

Nothing below the shells reads a clock, draws a random number or makes a task by itself: it is handed a `World`.
A real process gets `SystemWorld` (cluster/system.py); tests and the simulator hand in one on virtual time, and the
same code runs there, the same way for the same seed.

Timers (`loop.call_later`, `asyncio.timeout`) come from the running event loop, which the simulator replaces as a whole.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Protocol


class World(Protocol):
    @property
    def random(self) -> random.Random:
        """For jitter and sampling; never for secrets."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; comparable only within this process."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC, for humans and for retention; safety never rests on it."""
        ...

    def entropy(self, size: int) -> bytes:
        """Unpredictable bytes, for nonces and new IDs."""
        ...

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task that the world keeps alive and whose unexpected error it reports."""
        ...
