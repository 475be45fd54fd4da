"""Asks that handlers make: this host as a client of the cluster that it belongs to.

An ask leaves once what its entity staged before is committed (else the other entity might act on work that a crash
takes back), ends with the deadline of the command that makes it, and is repeated by whoever runs that command again
under the same derived ID. Who waits for whom travels in the chain; sharding/intake.py refuses a cycle.
"""

from __future__ import annotations

import msgspec

from ..actors.calls import Caller, Priority, Request
from ..actors.errors import DeadlineExceeded
from ..actors.world import World
from .commit import CommitPath
from .resident import LANES, Pending, Resident


def root_of(pending: Pending) -> str:
    """The name of a command that is the same in every attempt, on every host: the caller's own ID, or its number."""
    call, timer = pending.call, pending.timer
    if timer is not None:
        return f"timer/{call.kind}/{call.id}/{timer.name}/{timer.set_at}.{timer.due_ms}"
    if call.command_id:
        return f"{call.kind}/{call.id}/{call.command_id}"
    if not pending.client:  # it was a timer's, and a dead letter since
        return f"entry/{call.shard}.{pending.entry}"
    return f"{pending.client}.{call.shard}.{call.number}"


def _priority_of(pending: Pending) -> Priority:
    number = pending.call.priority
    return Priority(number) if number in LANES else Priority.NORMAL


class HandlerAsks:
    """The `Caller` of one turn."""

    __slots__ = ("_asker", "_commits", "_pending", "_resident", "_world")

    def __init__(self, asker: Caller, commits: CommitPath, world: World, resident: Resident, pending: Pending) -> None:
        self._asker = asker
        self._commits = commits
        self._world = world
        self._resident = resident
        self._pending = pending

    @property
    def app_name(self) -> str:
        return self._asker.app_name

    async def call(self, request: Request) -> bytes:
        await self._commits.settled(self._resident.ticket)
        left_s = self._pending.deadline - self._world.monotonic()
        timeout_s = left_s if request.timeout_s is None else min(left_s, request.timeout_s)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"{request.kind}/{request.id} was not asked: the asker's own deadline has passed")
        priority = request.priority or _priority_of(self._pending)
        return await self._asker.call(msgspec.structs.replace(request, timeout_s=timeout_s, priority=priority))
