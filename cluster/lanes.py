"""The sender's half of exactly-once and order: numbers, floors, and what is to be sent again. Pure.

A lane is one sender's traffic with one shard: a client's commands, or a stream of messages from another shard.

    offered --room?--> backlog --> numbered, unanswered --answered / given up--> gone, the floor moves up
                                     |         ^
                                     +--sent---+  again, with the same number, after any change of owner or connection

A client's commands are numbered without gaps when they enter the window, those to one entity in the order offered;
messages bring the numbers of their outbox, which only grow. The floor in every call tells the shard what it may forget;
`prev` names the previous unanswered number to the same entity, so that a reconnect cannot reorder.

One entity does not hold up the others. Commands to one that is busy wait beside the backlog (pace.py). What a full
mailbox bounced is held, with all that was offered to that entity after it, until one of them is answered; from time to
time the oldest that was bounced is tried again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from ..actors.calls import Mode, Request
from ..actors.stored import StoredMessage
from ..sharding.messages import Answer, Call
from .pace import MARGIN, PACE_FIRST, Lag, Pace

R = TypeVar("R", Request, StoredMessage)


class Outgoing(msgspec.Struct, Generic[R], eq=False):
    """What a lane carries, until it is answered."""

    request: R
    number: int = 0
    """0: the lane's next one, when it enters."""
    attempts: int = 0
    outstanding: int = 0
    """Sendings that were neither answered nor bounced: while there is one, it may run."""
    under_way: bool = False
    """It was sent over the lane's present connection and did not come back."""


class OutgoingCommand(Outgoing[Request], kw_only=True):
    """A client's command or query."""

    deadline: float
    gives_up: float
    """When its caller hears the end: at the deadline, or a little later where the host knows more (client.py)."""
    done: asyncio.Future[Answer]
    lost_at: int = 0
    """The incarnation whose connection closed while it was under way there. 0: none."""
    hosts_lost: int = 0
    """How many of those were not the owner any more afterwards."""


class OutgoingMessage(Outgoing[StoredMessage], kw_only=True):
    """A message of an outbox, under the number that it has there. It has no deadline, and nobody waits for it."""

    arrived: Callable[[int], None]


EntityKey = tuple[str, str]
"""(kind, ID)"""

Out = TypeVar("Out", bound=Outgoing[Any])


class Held:
    """An entity whose mailbox was full: from `number` on nothing is sent but that one, when a pause is over."""

    __slots__ = ("number", "retries", "retry")

    def __init__(self, number: int) -> None:
        self.number = number
        self.retries = 0
        self.retry: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None


def lane_key(sender: int, shard: int) -> int:
    """Names a lane among those of one carrier; a lane of a client's own commands (sender 0) by its shard alone."""
    return sender << 32 | shard


class Lane(ABC, Generic[Out]):
    __slots__ = (
        "_by_entity",
        "_entered",
        "backlog",
        "floor",
        "held",
        "link",
        "next_number",
        "resend",
        "retries",
        "retry",
        "sender",
        "shard",
        "unanswered",
    )

    def __init__(self, shard: int, sender: int = 0) -> None:
        """`sender`: as in `Call`."""
        self.shard = shard
        self.sender = sender
        self.next_number = 1
        """No number below it enters any more."""
        self.floor = 1
        """The lowest unanswered number; without one the next."""
        self.unanswered: dict[int, Out] = {}
        self._entered: list[int] = []
        """The numbers at or above the floor that entered, answered ones too: what the shard has to remember of us."""
        self._by_entity: dict[EntityKey, list[int]] = {}
        """The unanswered numbers per entity, in order. Lists: most hold one, and a deque costs six times that."""
        self.backlog: deque[Out] = deque()
        """Offered, waiting for room in the window."""
        self.resend: deque[Out] = deque()
        """What is to be sent again before anything new, in order, as the connection's credits allow."""
        self.held: dict[EntityKey, Held] = {}
        self.link: Any = None
        """The connection that new calls take; None while the lane is held (no route, or a retry is due)."""
        self.retry: asyncio.TimerHandle | None = None
        self.retries = 0
        """In a row, for the backoff."""

    def next(self, width: int, mailbox_max: int, now: float) -> deque[Out] | None:
        """The queue whose first is the next to enter; None when there is no room for any, or none waits. `width`:
        numbers at or above the floor; `mailbox_max`: of them to one entity."""
        backlog = self.backlog
        return backlog if backlog and self.room(backlog[0], width, mailbox_max) else None

    def room(self, out: Out, width: int, mailbox_max: int) -> bool:
        if len(self._entered) >= width:
            return False
        queued = self._by_entity.get((out.request.kind, out.request.id))
        return queued is None or len(queued) < mailbox_max

    @property
    def waits(self) -> bool:
        """Something that may have room now has not been sent."""
        return bool(self.backlog or self.resend)

    def enter(self, out: Out) -> None:
        """Give it its number, if it brings none, and a place in the window."""
        number = out.number
        if not number:
            number = out.number = self.next_number
        self.next_number = number + 1
        if not self._entered:
            self.floor = number
        self._entered.append(number)
        self.unanswered[number] = out
        key = (out.request.kind, out.request.id)
        queued = self._by_entity.get(key)
        if queued is None:
            self._by_entity[key] = [number]
        else:
            queued.append(number)

    @abstractmethod
    def call(self, out: Out, now: float, prev: int) -> Call:
        """The envelope of its next attempt."""

    def prev(self, out: Out) -> int:
        """Of what entered: the number before it to its entity that is unanswered still. 0: none."""
        queued = self._by_entity[out.request.kind, out.request.id]
        place = len(queued) - 1 if queued[-1] == out.number else bisect_left(queued, out.number)
        return queued[place - 1] if place else 0

    def all_again(self) -> None:
        """It has another connection: everything unanswered is to be sent over that one, in order."""
        self.resend.extend(self.unanswered.values())

    def next_again(self) -> Out | None:
        """The first of `resend` that is still to be sent: not answered, given up or held meanwhile. Stays there."""
        while self.resend:
            out = self.resend[0]
            if out.number in self.unanswered and not out.under_way and not self._is_held(out):
                return out
            self.resend.popleft()
        return None

    def _is_held(self, out: Out) -> bool:
        held = self.held.get((out.request.kind, out.request.id)) if self.held else None
        return held is not None and out.number > held.number

    # ---- full mailboxes --------------------------------------------------------------------------------------------

    def hold(self, out: Out, *, out_of_order: bool) -> Held:
        """It came back: hold its entity. Out of order: the shard does not know its predecessor."""
        key = (out.request.kind, out.request.id)
        held = self.held.get(key)
        if held is None:
            held = self.held[key] = Held(out.number)
        if out_of_order and out.number <= held.number:
            held.number = self._by_entity[key][0]  # whatever the shard lost, it gets all again
        else:
            held.number = min(held.number, out.number)
        return held

    def from_held(self, key: EntityKey) -> list[Out]:
        """What is held of that entity, in order."""
        first = self.held[key].number
        return [self.unanswered[number] for number in self._by_entity[key] if number >= first]

    # ---- ends ------------------------------------------------------------------------------------------------------

    def settle(self, number: int) -> Out | None:
        """Answered, or given up: the floor passes it. None: it was settled before."""
        unanswered = self.unanswered
        out = unanswered.pop(number, None)
        if out is None:
            return None
        key = (out.request.kind, out.request.id)
        queued = self._by_entity[key]
        queued.remove(number)  # nearly always the first
        if not queued:
            del self._by_entity[key]
        if self.held:
            held = self.held.get(key)
            if held is not None and (not queued or queued[-1] < held.number):
                held.cancel()  # all that came back was given up
                del self.held[key]
        if number == self.floor:
            entered = self._entered
            passed = 1
            while passed < len(entered) and entered[passed] not in unanswered:
                passed += 1
            del entered[:passed]
            self.floor = entered[0] if entered else self.next_number
        return out


class CommandLane(Lane[OutgoingCommand]):
    """A client's commands to one shard."""

    __slots__ = ("_backlog_first", "_lag", "_ready", "busy", "confirmed", "refused")

    def __init__(self, shard: int, lag: Lag | None = None) -> None:
        """`lag`: of the process, kept by who has the clock."""
        super().__init__(shard)
        self._lag = lag or Lag()
        self.busy: dict[EntityKey, Pace[OutgoingCommand]] = {}
        self._ready: OrderedDict[EntityKey, None] = OrderedDict()
        """Busy entities for whose commands there may be room."""
        self._backlog_first = True
        """Busy entities and the backlog take turns."""
        self.confirmed = 1
        """The floor that the shard's host was told last."""
        self.refused: list[tuple[OutgoingCommand, float]] = []
        """Taken out of what waits, since there is not time enough for them; and how many seconds they would wait."""

    def next(self, width: int, mailbox_max: int, now: float) -> deque[OutgoingCommand] | None:
        if len(self._entered) >= width:
            return None
        if not self._ready:
            if not self.backlog:
                return None
            if not self.busy and not self.held:  # nearly always
                out = self.backlog[0]
                queued = self._by_entity.get((out.request.kind, out.request.id))
                if (queued is None or len(queued) < PACE_FIRST) and out.deadline > now:
                    return self.backlog
            return self._from_backlog(width, mailbox_max, now)
        if self._backlog_first:
            return self._from_backlog(width, mailbox_max, now) or self._from_ready(width, mailbox_max, now)
        return self._from_ready(width, mailbox_max, now) or self._from_backlog(width, mailbox_max, now)

    def _from_ready(self, width: int, mailbox_max: int, now: float) -> deque[OutgoingCommand] | None:
        while self._ready:
            key = next(iter(self._ready))
            pace = self.busy.get(key)
            while pace is not None and pace.waiting and self._too_late(key, pace, pace.waiting[0], now):
                pace.waiting.popleft()
            if pace is not None and pace.waiting and self._has_room(key, pace, width, mailbox_max):
                return pace.waiting
            del self._ready[key]
        return None

    def _from_backlog(self, width: int, mailbox_max: int, now: float) -> deque[OutgoingCommand] | None:
        backlog = self.backlog
        while backlog:
            out = backlog[0]
            if out.deadline <= now:
                backlog.popleft()
                continue
            key = (out.request.kind, out.request.id)
            pace = self.busy.get(key) if self.busy else None
            if pace is None:
                queued = self._by_entity.get(key)
                if queued is None or (len(queued) < PACE_FIRST and key not in self.held):
                    return backlog
                pace = self.busy[key] = Pace(now)
            if not pace.waiting and self._has_room(key, pace, width, mailbox_max, out):
                if not self._too_late(key, pace, out, now):
                    return backlog
                backlog.popleft()
            else:
                pace.waiting.append(backlog.popleft())
        return None

    def _too_late(self, key: EntityKey, pace: Pace[OutgoingCommand], out: OutgoingCommand, now: float) -> bool:
        """It need not be sent: it is about to be given up, or its answer would come after that."""
        if out.deadline <= now:
            return True
        wait_s = pace.wait_s(len(self._by_entity.get(key, ()))) - self._lag.seconds
        if out.deadline - now >= MARGIN * wait_s:
            return False
        self.refused.append((out, wait_s))
        return True

    def _has_room(
        self,
        key: EntityKey,
        pace: Pace[OutgoingCommand],
        width: int,
        mailbox_max: int,
        out: OutgoingCommand | None = None,
    ) -> bool:
        if key in self.held:
            return False
        limit = min(mailbox_max, max(1, width // 2), pace.under_way_max)
        if out is not None and out.request.fail_fast:
            limit = mailbox_max  # it may be refused by a full mailbox, but not by our caution
        return len(self._by_entity.get(key, ())) < limit

    def enter(self, out: OutgoingCommand) -> None:
        super().enter(out)
        if self._ready:
            key = (out.request.kind, out.request.id)
            self._backlog_first = key in self._ready
            if self._backlog_first:
                self._ready.move_to_end(key)

    @property
    def waits(self) -> bool:
        return bool(self.backlog or self.resend or self._ready)

    @property
    def unconfirmed(self) -> bool:
        """Nothing is under way, and the host does not know that all is answered."""
        return not self.unanswered and self.confirmed < self.floor

    def waiting(self) -> list[OutgoingCommand]:
        """All that has not entered, those to one entity in order."""
        return [*(out for pace in self.busy.values() for out in pace.waiting), *self.backlog]

    def withdraw(self, out: OutgoingCommand) -> None:
        """It has not entered, and shall not."""
        key = (out.request.kind, out.request.id)
        pace = self.busy.get(key)
        for queue in (self.backlog,) if pace is None else (pace.waiting, self.backlog):
            if out in queue:
                queue.remove(out)
                break
        self._look_at(key)

    def answered(self, out: OutgoingCommand, now: float) -> None:
        """It ran, or was refused. Before `settle`, and needed only while there is anybody `busy`."""
        pace = self.busy.get((out.request.kind, out.request.id))
        if pace is not None:
            pace.answered(now)

    def settle(self, number: int) -> OutgoingCommand | None:
        out = super().settle(number)
        if out is not None and self.busy:
            self._look_at((out.request.kind, out.request.id))
        return out

    def _look_at(self, key: EntityKey) -> None:
        pace = self.busy.get(key)
        if pace is None:
            return
        if pace.waiting:
            self._ready[key] = None
        elif key not in self._by_entity:
            del self.busy[key]

    def call(self, out: OutgoingCommand, now: float, prev: int) -> Call:
        out.attempts += 1
        out.outstanding += 1
        self.confirmed = self.floor
        request = out.request
        return Call(
            self.shard,
            out.number,
            self.floor,
            prev,
            out.attempts,
            request.mode,
            request.kind,
            request.id,
            request.method,
            request.arguments,
            max(0, int((out.deadline - now) * 1000)),
            request.command_id,
            request.chain,
            0,
            0,
            request.priority,
        )


class Stream(Lane[OutgoingMessage]):
    """The messages from one shard to another."""

    __slots__ = ("epoch",)

    def __init__(self, shard: int, sender: int, epoch: int) -> None:
        """`epoch`: of the sending shard, as it is owned here."""
        super().__init__(shard, sender)
        self.epoch = epoch

    def call(self, out: OutgoingMessage, now: float, prev: int) -> Call:
        out.attempts += 1
        out.outstanding += 1
        message = out.request
        return Call(
            self.shard,
            out.number,
            self.floor,
            prev,
            out.attempts,
            Mode.TELL,
            message.kind,
            message.id,
            message.method,
            message.arguments,
            0,
            sender=self.sender,
            sender_epoch=self.epoch,
        )
