"""An entity in a host's memory with its mailbox, and a command on its way through the host.

IDLE --command arrives--> READY --turn begins--> RUNNING --mailbox empty--> IDLE --idle long enough--> (passivated)
                            ^                       |
                            `--- quota of turns ----'
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from ..persistence.overlay import EntityKey

if TYPE_CHECKING:
    from ..actors.activation import Activation
    from ..actors.kind import EntityKind, Handler
    from .messages import Call, Peer
    from .shard import OwnedShard
    from .window import Window


class Pending(msgspec.Struct, eq=False):
    """A command (or query) that was admitted and is not answered yet."""

    call: Call
    handler: Handler
    client: int
    peer: Peer
    """Where the answer goes: the connection from which its newest copy came."""
    window: Window[Pending]
    deadline: float
    """On the host's monotonic clock."""


class Resident:
    __slots__ = ("activation", "key", "kind", "leaving", "mailbox", "scheduled", "shard", "ticket", "used")

    def __init__(self, kind: EntityKind, key: EntityKey, shard: OwnedShard) -> None:
        self.kind = kind
        self.key = key
        self.shard = shard
        self.activation: Activation | None = None
        """None until its first turn (cold), and after passivation."""
        self.mailbox: deque[Pending] = deque()
        self.scheduled = False
        """READY or RUNNING: the scheduler will come back to it by itself."""
        self.ticket = 0
        """Of its newest staged record: what its state shows is durable once this is committed."""
        self.used = 0.0
        """Monotonic time of its newest turn."""
        self.leaving = False
        """A handler asked for passivation."""
