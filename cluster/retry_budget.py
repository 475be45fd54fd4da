"""How much a sender may send again: a share of what it sends first. Pure.

A count of retries bounds one command; in an outage all commands retry at once, and a host that comes back meets several
times its load. So retries are paid from a purse that new calls fill: with `RETRY_RATIO` = 0.2, in the long run no more
than one call in six is a repeat. A little comes by itself, or a quiet sender could never try again.

What must be sent again because its owner or connection changed is not paid for: that happens once for each change.
"""

from __future__ import annotations

RETRY_RATIO = 0.2
RETRIES_PER_S = 10.0
"""What comes by itself: a lone command is tried several times within its deadline."""
PURSE_MAX = 100.0
"""Saved up at most: the first retries of a sender whose connections were fine so far."""
DEBT_MAX = 20.0
"""A lane's retry sends all that came back, at once, and is paid afterwards; up to this, or two seconds."""


class RetryBudget:
    __slots__ = ("_purse", "_since")

    def __init__(self, now: float) -> None:
        self._purse = PURSE_MAX
        self._since = now

    def earn(self) -> None:
        """A call is sent for the first time."""
        if self._purse < PURSE_MAX:
            self._purse += RETRY_RATIO

    def spend(self, calls: int, now: float) -> bool:
        """So many are to be sent again. False: not now."""
        self._purse = min(PURSE_MAX, self._purse + (now - self._since) * RETRIES_PER_S)
        self._since = now
        if self._purse < 1:
            return False
        self._purse = max(-DEBT_MAX, self._purse - calls)
        return True
