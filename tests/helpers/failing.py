"""A till that is locked until somebody unlocks it: what comes before that fails, and becomes a dead letter.

A module of its own, so that host processes can import the app by name.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import atoll


class Locked(atoll.Rejected):
    pass


class Till(atoll.Entity):
    unlocked: bool = False
    taken: list[int] = atoll.field(default_factory=list)

    @atoll.command
    def unlock(self) -> None:
        self.unlocked = True

    @atoll.command
    def lock(self) -> None:
        self.unlocked = False

    @atoll.command
    def take(self, amount: int, slip: bytes = b"", notes: dict[str, Any] | None = None) -> None:
        """Refused at once while locked."""
        if not self.unlocked:
            raise Locked("the till is locked\nunlock it first")
        self.taken.append(amount)

    @atoll.command
    def force(self, amount: int) -> None:
        """Fails while locked, and is tried again."""
        if not self.unlocked:
            raise RuntimeError("the lock broke")
        self.taken.append(amount)

    @atoll.command
    def take_soon(self, amount: int) -> None:
        self.context.schedule("closing [bold]time", dt.timedelta(0), self.take, amount)

    @atoll.command
    def pass_on(self, to: str, amount: int) -> None:
        self.context.send(self.context.entity(Till, to).take, amount)

    @atoll.query
    def read(self) -> list[int]:
        return self.taken


SETTINGS = {"tell_attempts_max": 2, "tell_retry_first_s": 0.01}
app = atoll.App("failing", entities=[Till], settings=SETTINGS)
other_app = atoll.App("other", entities=[Till], settings=SETTINGS)
