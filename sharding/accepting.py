"""Taking tells over from their senders: when a command is owed, and its sender answered for that.

A tell that runs at once needs nothing of this: the record of its effects is its acceptance. One that still waits when
a batch is taken, though the host has nothing else to run (it stands behind a turn that waits, or behind a failed one),
is accepted by a record of its own, and its own run ends with another record, which says "done". Rule 23: never before
an earlier command of the same sender to that entity has run or been accepted, else a crash would reverse the two.

Accepted entries stay in memory up to bounds. Beyond them they are only stored, and paging.py brings them back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from ..actors.calls import Mode, Status
from ..actors.kind import Handler
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.records import Accepted, Delivery, MailboxRow, Record, RecordedReply
from .commit import CommitPath
from .gate import OutputGate
from .messages import Answer, Call, Message
from .resident import Backlog, Pending, Resident
from .shard import OwnedShard
from .staging import Staging
from .window import Window

ENTRY_BYTES = 200
"""What a stored entry costs beside its arguments, roughly."""


class _Nobody:
    """The peer of what is owed: its sender was answered, or there is none."""

    client = 0
    generation = 0

    def send(self, message: Message) -> None:
        pass

    def reply(self, call: Call, message: Message) -> None:
        pass

    def forget(self, call: Call) -> None:
        pass

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def close(self, reason: str) -> None:
        pass


NOBODY = _Nobody()
NO_WINDOW: Window[Pending] = Window()
"""Of what is owed: its number was answered for when it was accepted."""


class _NoHandler:
    """Stands in a `Pending` that will never run."""

    name = ""
    is_query = False
    is_async = False


NO_HANDLER: Handler = _NoHandler()  # type: ignore[assignment]  # never run: it only carries an answer, or a letter


def owed(shard: OwnedShard, row: MailboxRow, handler: Handler) -> Pending:
    """A mailbox entry as it stands in a mailbox."""
    accepted = row.accepted
    call = Call(
        shard.shard,
        accepted.number,
        0,
        0,
        1,
        Mode.TELL,
        row.kind,
        row.id,
        accepted.method,
        accepted.arguments,
        0,
        accepted.command_id,
    )
    return Pending(
        call,
        handler,
        accepted.client,
        NOBODY,
        NO_WINDOW,
        math.inf,
        entry=row.entry,
        attempts=row.attempts,
        suspect=row.entry <= shard.opened_at,
    )


class Holdings:
    """How many accepted entries a host has in memory, and how many it knows to be only stored."""

    __slots__ = ("_bytes_in_memory_max", "_in_memory_max", "bytes", "bytes_in_memory", "in_memory", "stored")

    def __init__(self, settings: Settings) -> None:
        self._in_memory_max = settings.accepted_in_memory_max
        self._bytes_in_memory_max = settings.accepted_in_memory_bytes_max
        self.in_memory = 0
        self.bytes_in_memory = 0
        self.stored = 0
        self.bytes = 0
        """Of the stored ones, roughly."""

    @property
    def full(self) -> bool:
        """No more should come into memory."""
        return self.in_memory > self._in_memory_max or self.bytes_in_memory > self._bytes_in_memory_max

    def entered(self, pending: Pending) -> None:
        """An accepted entry is in memory."""
        self.in_memory += 1
        self.bytes_in_memory += len(pending.call.arguments)

    def left(self, pending: Pending) -> None:
        """It is not any more."""
        self.in_memory -= 1
        self.bytes_in_memory -= len(pending.call.arguments)


class Accepting:
    def __init__(
        self,
        staging: Staging,
        commits: CommitPath,
        gate: OutputGate,
        holdings: Holdings,
        settings: Settings,
        world: World,
    ) -> None:
        self._staging = staging
        self._commits = commits
        self._gate = gate
        self._holdings = holdings
        self._settings = settings
        self._world = world
        self._waiting: dict[Resident, float] = {}
        """Those with tells that have just come, and since when: they may run at once."""
        self._due: dict[Resident, None] = {}
        """Those with tells that did not."""
        self.nudge: Callable[[], None]
        """See that `quiet` is called once there is nothing to run. Set by the host: the scheduler is made later."""

    # ---- when ------------------------------------------------------------------------------------------------------

    def arrived(self, resident: Resident, now: float) -> None:
        """A tell was put into its mailbox."""
        if not self._waiting:
            self.nudge()
        self._waiting.setdefault(resident, now)

    def turn_ended(self, resident: Resident) -> None:
        """A turn that others waited behind is over."""
        if resident.tells_wait:
            resident.tells_wait = False
            self.arrived(resident, self._world.monotonic())

    def quiet(self) -> None:
        """The host has nothing to run: what waits now, waits for something. The next batch accepts it."""
        if self._waiting:
            self._due.update(dict.fromkeys(self._waiting))
            self._waiting.clear()
            self._commits.wake()

    def about_to_take(self) -> None:
        """A batch is about to be taken."""
        if self._waiting:
            overdue = self._world.monotonic() - self._settings.accept_after_s
            for resident, since in self._waiting.items():  # in the order in which they came
                if since > overdue:
                    break
                self._due[resident] = None
            for resident in self._due:
                self._waiting.pop(resident, None)
        if self._due:
            due, self._due = self._due, {}
            for resident in due:
                self.accept(resident)

    # ---- what ------------------------------------------------------------------------------------------------------

    def accept(self, resident: Resident) -> None:
        """Accept the tells of one entity that may be."""
        if not resident.kind.durable or not resident.shard.may_accept():
            return
        blocked: set[int] = set()
        if resident.running is not None:
            self._accept_one(resident, resident.running, blocked)
        backlog = resident.backlog
        if backlog is not None:
            for queue in backlog.parked.values():
                for pending in queue:
                    self._accept_one(resident, pending, blocked)
        for index, pending in enumerate(resident.mailbox):
            if self._accept_one(resident, pending, blocked) and self._holdings.full:
                self._cut(resident, index)
                break
        backlog = resident.backlog
        if backlog is not None and backlog.behind:
            behind, backlog.behind, stored = backlog.behind, deque(), False
            for pending in behind:
                if self._accept_one(resident, pending, blocked):
                    self._only_stored(backlog, pending)
                    stored = True
                else:
                    if stored:
                        pending.behind = backlog.newest
                    backlog.behind.append(pending)
        resident.tells_wait = bool(blocked)

    def store(self, resident: Resident, pending: Pending) -> bool:
        """Accept a tell for which there is no room in memory. False: it cannot be taken, and nothing was done."""
        if not resident.kind.durable or not resident.shard.may_accept() or not self._may_store(resident):
            return False
        if resident.backlog is None or not resident.backlog.more:
            self.accept(resident)
        running = resident.running
        if (running is not None and _before(running, pending)) or any(
            _before(other, pending) for other in resident.waiting()
        ):
            return False
        pending.window.begin(pending.call.number, pending)
        self.stage(resident, pending)
        self._only_stored(resident.with_backlog(), pending)
        return True

    def stage(self, resident: Resident, pending: Pending, attempts: int = 0) -> int:
        """Stage the acceptance. Returns the ticket."""
        call, shard = pending.call, resident.shard
        delivery = Delivery(
            accepted=Accepted(call.method, call.arguments, pending.client, call.number, call.command_id),
            attempts=((shard.position + 1, attempts),) if attempts else (),
        )
        ticket = self.answered(shard, pending, delivery)
        pending.entry = shard.position
        pending.attempts = attempts
        resident.ticket = ticket
        self._holdings.entered(pending)
        return ticket

    def answered(self, shard: OwnedShard, pending: Pending, delivery: Delivery, payload: bytes = b"") -> int:
        """Stage what becomes of a command, and OK as its recorded reply; its sender is answered once that is committed.
        Returns the ticket."""
        call, window = pending.call, pending.window
        reply = RecordedReply(Status.OK, payload, 0)
        record = Record(
            shard.shard,
            0,
            call.kind,
            call.id,
            time_ms=self._world.wall_ms(),
            client=pending.client,
            number=call.number,
            floor=window.floor,
            reply=reply,
            riders=window.take_riders(self._staging.next_ticket),
            delivery=delivery,
        )
        ticket = self._staging.stage(shard, record)
        window.record(call.number, reply, ticket)
        self._gate.effect(ticket, pending, Answer(call.shard, call.number, reply.status, payload, call.sender))
        return ticket

    def adopt(self, resident: Resident, pending: Pending) -> None:
        """Put an entry that was just accepted for nobody (a replayed dead letter) behind what waits."""
        self._holdings.entered(pending)
        backlog = resident.backlog
        if backlog is not None and backlog.more:
            self._only_stored(backlog, pending)
        else:
            resident.mailbox.append(pending)

    def _accept_one(self, resident: Resident, pending: Pending, blocked: set[int]) -> bool:
        """True: it was accepted just now."""
        if pending.owed:
            return False
        if pending.call.number < pending.window.floor or self._world.monotonic() >= pending.deadline:
            return False  # its sender gave it up: it will not run
        room = not self._holdings.full or self._may_store(resident)
        if pending.call.mode != Mode.TELL or pending.client in blocked or not room:
            blocked.add(pending.client)
            return False
        self.stage(resident, pending)
        return True

    def is_full(self, resident: Resident) -> bool:
        """It cannot take one more, but for what its turn under way makes room for: senders wait for its turns."""
        settings = self._settings
        return not self._may_store(resident) and (
            self._holdings.full
            or not resident.has_room(
                settings.arguments_bytes_max, settings.mailbox_commands_max - 1, settings.mailbox_bytes_max
            )
        )

    def _may_store(self, resident: Resident) -> bool:
        settings, holdings, backlog = self._settings, self._holdings, resident.backlog
        return (
            holdings.stored < settings.stored_commands_max
            and holdings.bytes < settings.stored_bytes_max
            and (backlog is None or backlog.stored < settings.mailbox_stored_max)
        )

    def _cut(self, resident: Resident, index: int) -> None:
        """The entry at `index` was accepted, and there is no room for it in memory: what is behind it waits behind.
        But not what was accepted before (an unparked one may stand in front of it): entries of its sender that are only
        stored are newer."""
        backlog = resident.with_backlog()
        mailbox = list(resident.mailbox)
        rest = mailbox[index + 1 :]
        resident.mailbox = deque([*mailbox[:index], *(pending for pending in rest if pending.owed)])
        backlog.behind.extendleft(pending for pending in reversed(rest) if not pending.owed)
        self._only_stored(backlog, mailbox[index])
        for pending in backlog.behind:
            pending.behind = backlog.newest

    def _only_stored(self, backlog: Backlog, pending: Pending) -> None:
        """It stands in the newest record of its entity, and leaves memory."""
        if not backlog.more:
            backlog.more, backlog.paged_to = True, pending.entry - 1
        backlog.stored += 1
        backlog.newest = pending.entry
        holdings = self._holdings
        holdings.left(pending)
        holdings.stored += 1
        holdings.bytes += ENTRY_BYTES + len(pending.call.arguments)


def _before(other: Pending, pending: Pending) -> bool:
    """Another command of the same sender that has not run and is not accepted."""
    return other.client == pending.client and not other.owed
