"""Messages between entities, on the sender's side: from the committed record until their receivers took them over.

    staged in a record --committed--> carried --arrived--> acknowledged in a later record --> gone

Each message goes in the stream from its shard to the receiving one, under its outbox number, and stays in the tables
until an acknowledgement is committed: who takes the shard over sends again what is left, and the receivers know it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ..actors.settings import Settings
from ..actors.stored import StoredMessage
from ..actors.world import World
from ..persistence.records import Delivery, OutboxRow, Record, outbox_number
from .shard import OwnedShard
from .staging import Staging, message_bytes


class Courier(Protocol):
    """Carries committed messages to the owners of their receivers (cluster/courier.py)."""

    def carry(
        self,
        sending_shard: int,
        epoch: int,
        number: int,
        message: StoredMessage,
        arrived: Callable[[int], None],
        again: bool = False,
    ) -> None:
        """Send a message until its receiver's host has taken it over durably, however long that takes; then call
        `arrived(number)` once, on the loop. Messages of one sending shard are handed over in order of number; those to
        one entity arrive in that order. Handed over twice (same shard, epoch and number): undefined. `again`: a former
        owner may have sent it."""
        ...

    def connect_to(self, address: str) -> None:
        """Have a connection to that host, since it will be poked soon."""
        ...

    def poke(self, address: str, assigned: Sequence[tuple[int, int]] = ()) -> None:
        """Let the host at that address look at the store, and claim these (shard, epoch) at once. A hint."""
        ...

    def drop(self, sending_shard: int) -> None:
        """Send nothing of that shard any more, and call nobody: it is not this host's now."""
        ...


class Outbox:
    """All outboxes of a host."""

    def __init__(self, courier: Courier, staging: Staging, settings: Settings, world: World) -> None:
        self._courier = courier
        self._staging = staging
        self._settings = settings
        self._world = world
        self._loop = asyncio.get_running_loop()
        self._unacknowledged: dict[OwnedShard, None] = {}
        """Shards with acknowledgements that no record has taken along yet."""

    def opened(self, shard: OwnedShard, rows: Sequence[OutboxRow]) -> None:
        """It was taken over with messages that nobody has acknowledged: they are sent (again)."""
        for row in rows:
            size = shard.outbox[row.number] = message_bytes(row.message)
            self._staging.add(size)
            self._carry(shard, row.number, row.message, again=True)

    def committed(self, shard: OwnedShard, record: Record) -> None:
        """Its messages may leave now."""
        assert record.delivery is not None
        for index, message in enumerate(record.delivery.outbox):
            self._carry(shard, outbox_number(record.position, index), message)

    def closed(self, shard: OwnedShard) -> None:
        """Its new owner sends them."""
        self._courier.drop(shard.shard)
        self._staging.arrived(list(shard.outbox.values()))
        shard.outbox.clear()
        self._unacknowledged.pop(shard, None)

    def _carry(self, shard: OwnedShard, number: int, message: StoredMessage, *, again: bool = False) -> None:
        self._courier.carry(shard.shard, shard.epoch, number, message, partial(self._arrived, shard), again)

    def _arrived(self, shard: OwnedShard, number: int) -> None:
        size = shard.outbox.pop(number, None)
        if size is None:
            return
        self._staging.arrived([size])
        shard.delivered.append(number)
        if not self._unacknowledged:
            self._loop.call_later(self._settings.delivered_flush_s, self._flush)
        self._unacknowledged[shard] = None

    def _flush(self) -> None:
        """Acknowledge by a record of its own what no other record took along."""
        shards, self._unacknowledged = self._unacknowledged, {}
        for shard in shards:
            if shard.delivered and shard.is_open():
                self._staging.stage(shard, Record(shard.shard, 0, time_ms=self._world.wall_ms(), delivery=Delivery()))
