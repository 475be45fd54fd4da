"""How much of a lane one entity may have under way: what it answers soon. Pure.

A lane's floor waits for the oldest answer, and its window ends so many numbers above the floor: whatever a slow entity
has under way keeps the others of its shard from going on. So an entity begins with `PACE_FIRST` commands under way, and
has more as it answers: twice what it answered in the last `PACE_S`. One that takes a second for each keeps few places,
one that answers thousands a second soon has all that a window gives to one (Little's law: commands under way are their
rate times the time that each takes).

The same law says how long the next one would wait behind those under way. What has less time left than that is not
sent, and its caller hears so. Else, with more to do than the entity can, commands would leave when their deadline is
near, one after the other, and it would work for callers who are about to go. How late this process itself is does not
count: whatever it has under way, a loop that stands still for a second hears of its answers after a second.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

PACE_FIRST = 8
"""Commands under way before anything is known about an entity: a quick one has a hundred after two round trips."""
MARGIN = 1.1
"""Time left that a command must have, as a multiple of what it should take: the rate is that of a moment ago."""
PACE_S = 0.5
"""What is under way to one entity should be answered within this. A window of 1,024 numbers then lets the others of its
shard send some 1,000 commands a second past it."""


class Lag:
    """How late this process's loop was, lately."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0


class Pace(Generic[T]):
    """One entity that has, or had, `PACE_FIRST` commands under way."""

    __slots__ = ("_answers", "_answers_before", "_rate", "_since", "waiting")

    def __init__(self, now: float) -> None:
        self.waiting: deque[T] = deque()
        """Commands to it that wait for room."""
        self._since = now
        self._answers = 0
        """Since then."""
        self._answers_before = 0
        """In the `PACE_S` before."""
        self._rate = 0.0
        """Answers per second, lately. 0: it answered nothing for a while, nobody knows how quick it is."""

    @property
    def under_way_max(self) -> int:
        return PACE_FIRST + 2 * max(self._answers, self._answers_before)

    def wait_s(self, under_way: int) -> float:
        """How long the next one waits behind so many under way. Few say nothing: 0."""
        rate = max(self._rate, self._answers / PACE_S) if self._rate else 0.0
        return under_way / rate if rate and under_way >= PACE_FIRST else 0.0

    def answered(self, now: float) -> None:
        elapsed = now - self._since
        if elapsed >= PACE_S:
            self._answers_before = self._answers if elapsed < 2 * PACE_S else 0
            self._rate = self._answers_before / elapsed
            self._answers = 0
            self._since = now
        self._answers += 1
