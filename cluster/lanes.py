"""The sender's half of exactly-once and order: numbers, floors, and what is to be sent again. Pure.

A lane is one sender's traffic with one shard: a client's commands, or a stream of messages from another shard.

    offered --room?--> backlog --> numbered, unanswered --answered / given up--> gone, the floor moves up
                                     |         ^
                                     +--sent---+  again, with the same number, after any change of owner or connection

A client's commands are numbered without gaps when they enter the window, in the order offered; messages bring the
numbers of their outbox, which only grow. The floor in every call tells the shard what it may forget; `prev` names the
previous unanswered number to the same entity, so that a reconnect cannot reorder.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from ..actors.calls import Mode, Request
from ..actors.stored import StoredMessage
from ..sharding.messages import Answer, Call

R = TypeVar("R", Request, StoredMessage)


class Outgoing(msgspec.Struct, Generic[R], eq=False):
    """What a lane carries, until it is answered."""

    request: R
    number: int = 0
    """0: the lane's next one, when it enters."""
    attempts: int = 0
    outstanding: int = 0
    """Sendings that were neither answered nor bounced: while there is one, it may run."""


class OutgoingCommand(Outgoing[Request], kw_only=True):
    """A client's command or query."""

    deadline: float
    done: asyncio.Future[Answer]


class OutgoingMessage(Outgoing[StoredMessage], kw_only=True):
    """A message of an outbox, under the number that it has there. It has no deadline, and nobody waits for it."""

    arrived: Callable[[int], None]


Out = TypeVar("Out", bound=Outgoing[Any])


def lane_key(sender: int, shard: int) -> int:
    """Names a lane among those of one carrier; a lane of a client's own commands (sender 0) by its shard alone."""
    return sender << 32 | shard


class Lane(ABC, Generic[Out]):
    __slots__ = (
        "_by_entity",
        "_entered",
        "backlog",
        "floor",
        "link",
        "next_number",
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
        self._by_entity: dict[tuple[str, str], list[int]] = {}
        """The unanswered numbers per entity, in order. Lists: most hold one, and a deque costs six times that."""
        self.backlog: deque[Out] = deque()
        """Offered, waiting for room in the window."""
        self.link: Any = None
        """The connection that new calls take; None while the lane is held (no route, or a retry is due)."""
        self.retry: asyncio.TimerHandle | None = None
        self.retries = 0
        """In a row, for the backoff."""

    def room(self, out: Out, width: int, mailbox_max: int) -> bool:
        if len(self._entered) >= width:
            return False
        queued = self._by_entity.get((out.request.kind, out.request.id))
        return queued is None or len(queued) < mailbox_max

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

    def newest_before(self, out: Out) -> int:
        """`prev` of what entered last."""
        queued = self._by_entity[out.request.kind, out.request.id]
        return queued[-2] if len(queued) > 1 else 0

    def again(self, now: float) -> list[Call]:
        """Everything unanswered, in order, for another attempt."""
        newest: dict[tuple[str, str], int] = {}
        calls = []
        for number, out in self.unanswered.items():
            key = (out.request.kind, out.request.id)
            calls.append(self.call(out, now, newest.get(key, 0)))
            newest[key] = number
        return calls

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

    __slots__ = ()

    def call(self, out: OutgoingCommand, now: float, prev: int) -> Call:
        out.attempts += 1
        out.outstanding += 1
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
