"""A circuit breaker: whether to call something that failed lately. Pure.

    CLOSED --`failures` in a row--> OPEN --pause over, one trial--> HALF_OPEN --succeeded--> CLOSED
                                     ^                                 |
                                     `----------- failed: twice the pause, up to `pause_max_s`

Nygard, "Release It!", 2007. The pause is drawn between half and all of its bound, so that many hosts do not come back
at once. What began before the last change of state decides nothing any more.
"""

from __future__ import annotations

import enum


class BreakerState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    """One trial is under way."""


class Breaker:
    def __init__(self, failures: int, pause_first_s: float, pause_max_s: float) -> None:
        """Raises `ValueError` for bounds that make no sense."""
        if failures < 1 or not 0 < pause_first_s <= pause_max_s:
            raise ValueError(
                f"a circuit breaker opens after 1 or more failures (not {failures}), for pauses above 0 s that grow "
                f"(not {pause_first_s} to {pause_max_s})"
            )
        self._failures_max = failures
        self._pause_first_s = pause_first_s
        self._pause_max_s = pause_max_s
        self.state = BreakerState.CLOSED
        self._changes = 0
        """Changes of state so far: a call carries the number that it began with."""
        self._failures = 0
        """In a row, while closed."""
        self._openings = 0
        """In a row, without having been closed between."""
        self._until = 0.0

    def enter(self, now: float) -> int | None:
        """A call is to be made. Returns what its end has to bring along, None when it must not be made."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self._change(BreakerState.HALF_OPEN)
            return self._changes
        return self._changes if self.state is BreakerState.CLOSED else None

    def retry_after_s(self, now: float) -> float:
        """Of a call that was refused: when to ask again."""
        if self.state is BreakerState.OPEN:
            return max(0.0, self._until - now)
        return self._pause_first_s

    def succeeded(self, call: int) -> None:
        if call != self._changes:
            return
        self._failures = 0
        if self.state is BreakerState.HALF_OPEN:
            self._openings = 0
            self._change(BreakerState.CLOSED)

    def failed(self, call: int, now: float, luck: float) -> None:
        """`luck`: between 0 and 1."""
        if call != self._changes:
            return
        self._failures += 1
        if self.state is BreakerState.HALF_OPEN or self._failures >= self._failures_max:
            pause_s = min(self._pause_max_s, self._pause_first_s * 2.0 ** min(self._openings, 30))
            self._until = now + pause_s * (1 + luck) / 2
            self._openings += 1
            self._change(BreakerState.OPEN)

    def abandoned(self, call: int, now: float) -> None:
        """It was given up and proves nothing. After a trial the next may try at once."""
        if call == self._changes and self.state is BreakerState.HALF_OPEN:
            self._until = now
            self._change(BreakerState.OPEN)

    def _change(self, state: BreakerState) -> None:
        self.state = state
        self._changes += 1
        self._failures = 0
