"""A turn: one command or query run to completion on one activation. What goes in, and what comes out.

The activation (activation.py) runs it and encodes everything; the host decides when, and commits the result.
"""

from __future__ import annotations

import msgspec

from .calls import Caller, Status
from .stored import StoredEvent, StoredMessage, StoredState, StoredTimer


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What a handler may know of the command that it runs."""

    now_ms: int
    """Wall clock at the start of the turn, constant during it."""
    deadline_s: float
    """Seconds left for the caller when the turn began."""
    root: str = ""
    """Names the command that runs, the same whenever and wherever it is run again: asks take their IDs from it."""
    chain: tuple[str, ...] = ()
    """The entities (`kind/id`) that wait for this command, outermost first."""
    due_ms: int | None = None
    """The time for which the timer was set whose tick this turn is; None for commands of callers."""
    sends_max: int = 0
    """Messages that the outbox has room for: one more fails the turn as OVERLOADED."""
    caller: Caller | None = None
    """Carries the asks that the handler makes; None where there is nobody to ask (a plain handler, a hook, a test)."""


class TurnResult(msgspec.Struct, gc=False):
    """How the turn ended. `status` and `payload` go to the caller, the rest into the record."""

    status: Status
    payload: bytes
    changed: bool = False
    """The entity has something to commit; its activation's `seq` grew by one."""
    state: StoredState | None = None
    """Entity: the new state. EventSourced: a snapshot, when one is due."""
    events: tuple[StoredEvent, ...] = ()
    deleted: bool = False
    messages: tuple[StoredMessage, ...] = ()
    """What the handler sent, in order: committed with the rest, delivered afterwards."""
    timers: tuple[StoredTimer, ...] = ()
    """What it scheduled: at most one per name. With `deleted`, what it scheduled after the deletion."""
    timers_gone: tuple[str, ...] = ()
    """The names that it cancelled, none of which stands in `timers`."""
    passivate: bool = False
    """The handler asked to leave memory after this turn."""
    error: BaseException | None = None
    """The handler's own exception (HANDLER_FAILED), for the host's log; never sent."""

    @property
    def has_effects(self) -> bool:
        """There is something to commit."""
        return bool(self.changed or self.messages or self.timers or self.timers_gone)
