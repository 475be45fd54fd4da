"""An entity in a host's memory with its mailbox, and a command on its way through the host.

IDLE --command arrives--> READY --turn begins--> RUNNING --mailbox empty--> IDLE --idle long enough--> (passivated)
                            ^                       |
                            `--- quota of turns ----'
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from ..actors.calls import Priority, Status
from ..persistence.overlay import EntityKey
from .messages import Answer, OutOfOrder

if TYPE_CHECKING:
    from ..actors.activation import Activation
    from ..actors.kind import EntityKind, Handler
    from ..actors.stored import StoredTimer
    from .messages import Call, Peer
    from .shard import OwnedShard
    from .window import Window


class Pending(msgspec.Struct, eq=False):
    """A command (or query) that has a place in a mailbox.

    It has a caller who waits for its answer; or, once it is accepted, it is *owed*: the store knows of it, nobody
    waits, and it runs whoever dies. A timer's tick is owed from the beginning.
    """

    call: Call
    handler: Handler
    client: int
    """Whose it is: a session, a stream of messages (`records.stream_of`), or 0 for a timer."""
    peer: Peer
    """Where the answer goes: the connection from which its newest copy came."""
    window: Window[Pending]
    deadline: float
    """On the host's monotonic clock; of something owed, of its present run."""
    entry: int = 0
    """Its number in the mailbox table: the position of the record that accepted it. 0: not accepted."""
    timer: StoredTimer | None = None
    """The timer whose tick it is."""
    attempts: int = 0
    """Runs without success that are recorded; of something owed."""
    suspect: bool = False
    """A host that died may have died of it: before it runs, an attempt is committed."""
    counted: bool = False
    """The run under way stands in `attempts` already."""
    alone: bool = False
    """It was in a batch that failed: it runs by itself."""
    behind: int = 0
    """The newest entry that was only stored when it came: it runs after that."""

    def send_back(self, status: Status, message: bytes) -> None:
        """It did not run, and its number stays free: its sender may send it again."""
        call = self.call
        self.window.bounce(call.number)
        self.reply(Answer(call.shard, call.number, status, message, call.sender))

    def reply(self, message: Answer | OutOfOrder) -> None:
        """Tell its sender."""
        self.peer.reply(self.call, message)

    def given_up(self) -> None:
        """Its sender is told nothing: it does not wait for it any more, or asks elsewhere."""
        self.peer.forget(self.call)

    @property
    def owed(self) -> bool:
        return self.entry != 0 or self.timer is not None


class Backlog:
    """What a resident has beside its mailbox. In this order, for each sender:

    parked            failed, until its next try, and what came after it from the same sender
    (the mailbox)
    stored            accepted entries that are only in the store, above `paged_to`
    behind            what arrived while there were stored ones
    """

    __slots__ = ("behind", "more", "newest", "paged_to", "parked", "stored", "unreadable")

    def __init__(self) -> None:
        self.more = False
        """There may be stored entries."""
        self.paged_to = 0
        """Stored entries up to this one were paged in, or never left memory."""
        self.newest = 0
        """The newest entry that went straight to the store, or that may stand there."""
        self.stored = 0
        """How many are stored, roughly."""
        self.unreadable = False
        """They are damaged: nobody looks again but for a caller."""
        self.behind: deque[Pending] = deque()
        self.parked: dict[int, deque[Pending]] = {}

    def holds_up(self, pending: Pending) -> bool:
        """It stands behind one of its sender that is tried again later. A timer's tick has no sender; the dead letter
        of one that is replayed has none either, but stands in the mailbox like a command."""
        return pending.client in self.parked and pending.timer is None

    @property
    def empty(self) -> bool:
        return not (self.more or self.parked or self.behind)


LANES: dict[int, int] = {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BACKGROUND: 2}
"""By number, the best first (ready.py)."""
NORMAL_LANE = LANES[Priority.NORMAL]


class Resident:
    __slots__ = (
        "activation",
        "backlog",
        "in_lane",
        "key",
        "kind",
        "lane",
        "leaving",
        "mailbox",
        "running",
        "scheduled",
        "shard",
        "tells_wait",
        "ticket",
        "used",
    )

    def __init__(self, kind: EntityKind, key: EntityKey, shard: OwnedShard) -> None:
        self.kind = kind
        self.key = key
        self.shard = shard
        self.activation: Activation | None = None
        """None until its first turn (cold), and after passivation."""
        self.mailbox: deque[Pending] = deque()
        self.backlog: Backlog | None = None
        """None while there is only the mailbox, which is nearly always."""
        self.running: Pending | None = None
        """In a turn that waits."""
        self.tells_wait = False
        """Some could not be accepted yet, behind an earlier command of their sender."""
        self.lane = NORMAL_LANE
        """The best one of what came since its mailbox was empty: who waits behind others lends them its priority."""
        self.in_lane: int | None = None
        """Where it waits for the scheduler."""
        self.scheduled = False
        """READY or RUNNING: the scheduler will come back to it by itself."""
        self.ticket = 0
        """Of its newest staged record: what its state shows is durable once this is committed."""
        self.used = 0.0
        """Monotonic time of its newest turn."""
        self.leaving = False
        """A handler asked for passivation."""

    def with_stored(self, entries: int) -> None:
        """All that is owed of it is only stored: so many entries, roughly."""
        backlog = self.with_backlog()
        backlog.more, backlog.stored, backlog.newest = True, entries, self.shard.position

    def with_backlog(self) -> Backlog:
        if self.backlog is None:
            self.backlog = Backlog()
        return self.backlog

    def must_page(self, limit: int) -> bool:
        """Stored entries come next, and there is room for them."""
        backlog = self.backlog
        if backlog is None or not backlog.more or (backlog.unreadable and not backlog.behind):
            return False
        return not backlog.parked or sum(map(len, backlog.parked.values())) < limit

    def queued(self) -> int:
        """Commands in memory, without the running one."""
        backlog = self.backlog
        if backlog is None:
            return len(self.mailbox)
        return len(self.mailbox) + len(backlog.behind) + sum(map(len, backlog.parked.values()))

    def has_room(self, argument_bytes: int, commands_max: int, bytes_max: int) -> bool:
        """For one more command with so many bytes of arguments."""
        queued = len(self.mailbox) if self.backlog is None else self.queued()
        if queued >= commands_max:
            return False
        if argument_bytes * commands_max <= bytes_max or not queued:
            return True  # nearly always: it takes large ones to reach the bytes before the count
        return argument_bytes + sum(len(pending.call.arguments) for pending in self.waiting()) <= bytes_max

    def half_emptied_s(self, now: float) -> float:
        """When half of its mailbox should have run: who is next has waited as long as the whole of it takes."""
        for pending in self.mailbox:
            if not pending.owed and not pending.call.sender:
                return max(0.0, now - pending.deadline + pending.call.remaining_ms / 1000) / 2
        return 0.0

    def waiting(self) -> Iterator[Pending]:
        """All that is in memory and not running, each sender's in its order."""
        backlog = self.backlog
        if backlog is not None:
            for queue in backlog.parked.values():
                yield from queue
        yield from self.mailbox
        if backlog is not None:
            yield from backlog.behind

    def take_expired(self, now: float) -> list[Pending]:
        """Take out what waits for its turn and has a deadline that has passed: a caller's, what is owed has none."""
        backlog = self.backlog
        queues = [self.mailbox] if backlog is None else [*backlog.parked.values(), self.mailbox, backlog.behind]
        expired = []
        for queue in queues:
            late = [pending for pending in queue if pending.deadline <= now and not pending.owed]
            if late:
                kept = [pending for pending in queue if pending.deadline > now or pending.owed]
                queue.clear()
                queue.extend(kept)
                expired += late
        return expired

    def remove(self, pending: Pending) -> None:
        """Take one out that waits."""
        backlog = self.backlog
        queues = [self.mailbox] if backlog is None else [self.mailbox, backlog.behind, *backlog.parked.values()]
        for queue in queues:
            if pending in queue:
                queue.remove(pending)
                return

    def put(self, pending: Pending) -> None:
        """At the end of what waits."""
        backlog = self.backlog
        priority = pending.call.priority
        if priority:  # else it is normal, which an idle one is
            lane = LANES.get(priority, NORMAL_LANE)
            if lane < self.lane or not (self.scheduled or self.mailbox):
                self.lane = lane
        elif self.lane > NORMAL_LANE:
            self.lane = NORMAL_LANE
        if backlog is None or not backlog.more:
            if not self.mailbox:
                self.shard.loaded[self] = None
            self.mailbox.append(pending)
        else:
            self.shard.loaded[self] = None
            pending.behind = backlog.newest
            backlog.behind.append(pending)

    def clear(self) -> None:
        """Forget what waits: the shard is not ours, or is given back. What is owed is only stored from now on."""
        entries = sum(pending.entry != 0 for pending in self.waiting())
        known = self.backlog
        self.mailbox.clear()
        self.backlog = None
        if entries or (known is not None and known.more):
            self.with_stored(entries + (known.stored if known is not None else 0))
