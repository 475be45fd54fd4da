"""What a host's log lines are about (actors/logs.py): an entity in its memory, or a command on its way through it."""

from __future__ import annotations

from ..actors.logs import about
from .asks import root_of
from .resident import Pending, Resident
from .shard import OwnedShard


def of_entity(resident: Resident) -> dict[str, object]:
    shard, (kind, id) = resident.shard, resident.key
    return about(shard=shard.shard, incarnation=shard.incarnation, kind=kind, id=id)


def of_command(shard: OwnedShard, pending: Pending) -> dict[str, object]:
    """Named by its caller's own ID for it, else as in every attempt on every host."""
    call = pending.call
    command = call.command_id or root_of(pending)
    return about(shard=shard.shard, incarnation=shard.incarnation, kind=call.kind, id=call.id, command=command)
