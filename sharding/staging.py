"""Where records get their place: the shard's next position, and what rides along.

Whoever has something to commit builds a record and hands it over here. What the record says about timers, messages and
dead letters is true in memory from this moment on (it is staged, like an entity's state); what leaves the host waits
for the commit.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from ..actors.calls import Mode
from ..actors.settings import Settings
from ..actors.stored import StoredMessage
from ..persistence.records import Delivery, Record, outbox_number
from .commit import CommitPath
from .messages import Call
from .shard import OwnedShard

MESSAGE_BYTES = 200
"""What a message on its way costs beside its arguments, roughly."""


def message_bytes(message: StoredMessage) -> int:
    return MESSAGE_BYTES + len(message.arguments)


def digest_of(call: Call) -> int:
    """Tells two different commands under one command ID apart. A tell has no result to give to an ask."""
    told = "\0tell" if call.mode == Mode.TELL else ""
    return xxh3_64_intdigest(
        call.arguments, seed=xxh3_64_intdigest(f"{call.kind}\0{call.id}\0{call.method}{told}".encode())
    )


class Staging:
    def __init__(self, commits: CommitPath, settings: Settings) -> None:
        self._commits = commits
        self._settings = settings
        self.messages = 0
        """Messages of all shards that are staged and not yet taken over by their receivers."""
        self.bytes = 0
        self.room = settings.outbox_messages_max
        """Messages that one more turn may send."""
        self.reserve = 2 * settings.outbox_messages_max
        """Messages that one more turn may send of an entity that the outbox may be waiting for."""

    @property
    def next_ticket(self) -> int:
        return self._commits.staged + 1

    def stage(self, shard: OwnedShard, record: Record, *, tied: bool = False) -> int:
        """Give the record its position and put it into the next batch. Returns its ticket. `tied`: see commit.py."""
        shard.position += 1
        record.position = shard.position
        if shard.delivered:
            if record.delivery is None:
                record.delivery = Delivery()
            record.delivery.delivered, shard.delivered = tuple(shard.delivered), []
        if record.delivery is not None or record.deleted:
            self._take_in(shard, record)
        ticket = self._commits.stage(record, tied=tied)
        shard.ticket = ticket
        return ticket

    def _take_in(self, shard: OwnedShard, record: Record) -> None:
        delivery = record.delivery
        key = (record.kind, record.id)
        if record.deleted:
            shard.timers.clear(key)
        if delivery is None:
            return
        if delivery.timers or delivery.timers_gone:
            delivery.timers = shard.timers.staged(key, delivery.timers, delivery.timers_gone, record.position)
        for index, message in enumerate(delivery.outbox):
            size = message_bytes(message)
            shard.outbox[outbox_number(record.position, index)] = size
            self.messages += 1
            self.bytes += size
        if delivery.outbox:
            self._measure()
        if delivery.dead is not None:
            shard.dead_letters += 1
        if delivery.letter_gone:
            shard.dead_letters -= 1

    def arrived(self, sizes: list[int]) -> None:
        """Messages of those sizes are no longer this host's to deliver."""
        self.messages -= len(sizes)
        self.bytes -= sum(sizes)
        self._measure()

    def add(self, size: int) -> None:
        """A message of a shard that was taken over."""
        self.messages += 1
        self.bytes += size
        self._measure()

    def _measure(self) -> None:
        settings = self._settings
        self.room = max(0, settings.outbox_messages_max - self.messages)
        self.reserve = max(0, 2 * settings.outbox_messages_max - self.messages)
        if self.bytes >= settings.outbox_bytes_max:
            self.room = 0
        if self.bytes >= 2 * settings.outbox_bytes_max:
            self.reserve = 0
