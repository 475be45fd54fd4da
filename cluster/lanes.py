"""The client's half of exactly-once and order: numbers, floors, and what is to be sent again. Pure.

A lane is one client's traffic with one shard.

    offered --room?--> backlog --> numbered, unanswered --answered / given up--> gone, the floor moves up
                                     |         ^
                                     +--sent---+  again, with the same number, after any change of owner or connection

Numbers are given when a command enters the window, in the order offered. The floor in every call tells the shard what
it may forget; `prev` names the previous unanswered command to the same entity, so that a reconnect cannot reorder.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec

from ..actors.calls import Request
from ..sharding.messages import Answer, Call


class Outgoing(msgspec.Struct, eq=False):
    """A command from its call to its answer."""

    request: Request
    deadline: float
    done: asyncio.Future[Answer]
    number: int = 0
    attempts: int = 0
    outstanding: int = 0
    """Sendings that were neither answered nor bounced: while there is one, it may run."""


class Lane:
    __slots__ = ("_by_entity", "backlog", "floor", "link", "next_number", "retries", "retry", "shard", "unanswered")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.next_number = 1
        self.floor = 1
        self.unanswered: dict[int, Outgoing] = {}
        self._by_entity: dict[tuple[str, str], list[int]] = {}
        """The unanswered numbers per entity, in order. Lists: most hold one, and a deque costs six times that."""
        self.backlog: deque[Outgoing] = deque()
        """Offered, waiting for room in the window."""
        self.link: Any = None
        """The connection that new commands take; None while the lane is held (no route, or a retry is due)."""
        self.retry: asyncio.TimerHandle | None = None
        self.retries = 0
        """In a row, for the backoff."""

    def room(self, out: Outgoing, width: int, mailbox_max: int) -> bool:
        if self.next_number >= self.floor + width:
            return False
        queued = self._by_entity.get((out.request.kind, out.request.id))
        return queued is None or len(queued) < mailbox_max

    def enter(self, out: Outgoing) -> None:
        """Give it its number."""
        out.number = self.next_number
        self.next_number += 1
        self.unanswered[out.number] = out
        key = (out.request.kind, out.request.id)
        queued = self._by_entity.get(key)
        if queued is None:
            self._by_entity[key] = [out.number]
        else:
            queued.append(out.number)

    def call(self, out: Outgoing, now: float, prev: int) -> Call:
        """The envelope of its next attempt."""
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

    def newest_before(self, out: Outgoing) -> int:
        """`prev` of the command that entered last."""
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

    def settle(self, number: int) -> Outgoing | None:
        """Answered, or given up: the floor passes it. None: it was settled before."""
        out = self.unanswered.pop(number, None)
        if out is None:
            return None
        key = (out.request.kind, out.request.id)
        queued = self._by_entity[key]
        queued.remove(number)  # nearly always the first
        if not queued:
            del self._by_entity[key]
        while self.floor < self.next_number and self.floor not in self.unanswered:
            self.floor += 1
        return out
