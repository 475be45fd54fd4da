"""A host reduced to its commits, to be killed: takes every shard over, then appends batches and says which are durable.

    python writer.py URL SEED [--unknown]           --unknown: registers without its process, so that it cannot be
                                                    killed by its successor and must be fenced

One JSON line each on stdout: {"incarnation", "positions", "took_ms"} once it owns all, then {"n", "positions"} after each
append returned (never before), and {"fenced": n} when it was. Every record carries a value that says who wrote it where.
From time to time it checkpoints and lets go of log rows, so a kill may come in the middle of those as well.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from atoll.actors.errors import Fenced, StoreUnavailable
from atoll.actors.stored import StoredEvent
from atoll.persistence.open import open_store
from atoll.persistence.process import this_process
from atoll.persistence.records import Commit, Record, encode_batch
from atoll.persistence.recovery import take_over
from atoll.persistence.spi import Assignment, CheckpointEnd, HostState, ShardState, TableWrite

APP = "killed"
SHARDS = 3
KIND = "Ledger"


def value(incarnation: int, n: int, shard: int, position: int, size: int) -> bytes:
    """What a record holds: unlike that of every other one, and as long as it should be."""
    return f"{incarnation}.{n}.{shard}.{position}.{size}.".encode().ljust(size, b"~")


class Writer:
    def __init__(self, url: str, seed: int) -> None:
        self.store = open_store(url)
        self.luck = random.Random(seed)
        self.incarnation = 0
        self.epochs: dict[int, int] = {}
        self.positions: dict[int, int] = {}
        self.pending: dict[int, list[Record]] = {}
        """Per shard, what is committed and not in its history yet."""
        self.old_logs: set[int] = set()

    async def take_over(self, process: Any) -> None:
        """What coordinator and host do after a host was lost."""
        await patiently(self.store.open, APP, SHARDS)
        self.incarnation = await patiently(self.store.register_host, "a:1", "node", process)
        began = time.monotonic()
        for host in await patiently(self.store.hosts):
            if host.incarnation != self.incarnation and host.state is HostState.LIVE:
                await patiently(self.store.condemn, host.incarnation, host.renewals)
        wanted = [Assignment(row.shard, row.epoch, self.incarnation) for row in await patiently(self.store.shards)]
        await patiently(self.store.assign, wanted)
        claims = [(a.shard, a.expected_epoch + 1) for a in wanted]
        for shard in await patiently(take_over, self.store, self.incarnation, claims):
            self.epochs[shard.row.shard] = shard.row.epoch
            self.positions[shard.row.shard] = shard.position
            self.pending[shard.row.shard] = list(shard.tail)
            self.old_logs |= set(shard.row.owners) - {self.incarnation}
        assert len(self.epochs) == SHARDS, [
            row for row in await self.store.shards() if row.state is not ShardState.OWNED
        ]
        took_ms = round((time.monotonic() - began) * 1000)
        say({"incarnation": self.incarnation, "positions": self.positions, "took_ms": took_ms})

    async def write_for_ever(self) -> None:
        n = 0
        while True:
            n += 1
            records = self.batch(n)
            content = encode_batch(records, self.incarnation, n)
            try:
                await patiently(self.store.append, self.incarnation, n, content)
            except Fenced:
                say({"fenced": n})
                return
            for record in records:
                self.positions[record.shard] = record.position
                self.pending[record.shard].append(record)
            say({"n": n, "positions": self.positions})
            if self.luck.random() < 0.1:
                await self.checkpoint(n)

    def batch(self, n: int) -> list[Record]:
        records = []
        for shard in self.luck.sample(range(SHARDS), self.luck.randrange(1, SHARDS + 1)):
            for position in range(self.positions[shard] + 1, self.positions[shard] + 1 + self.luck.randrange(1, 5)):
                size = self.luck.choice([40, 200, 200, 5_000, 60_000])
                event = StoredEvent("Noted", 1, value(self.incarnation, n, shard, position, size))
                records.append(Record(shard, position, KIND, "the one", position, 1000, events=(event,)))
        return records

    async def checkpoint(self, n: int) -> None:
        """Everything committed goes to the history; then the rows that held it may go, ours and our predecessors'."""
        writes = []
        for shard, records in self.pending.items():
            commits = tuple(Commit(r.position, r.kind, r.id, r.seq, r.time_ms, r.events) for r in records)
            end = CheckpointEnd(self.positions[shard], commits)
            writes.append(TableWrite(shard, self.epochs[shard], end=end))
        for write in writes:
            if await patiently(self.store.checkpoint, self.incarnation, [write]):
                return  # taken from us: the next append will say so
        for records in self.pending.values():
            records.clear()
        await patiently(self.store.delete_log_rows, self.incarnation, n)
        for log in self.old_logs:
            await patiently(self.store.delete_log_rows, log, 1 << 40)
        self.old_logs.clear()


async def patiently(call: Any, *args: Any) -> Any:
    """An unknown outcome is repeated with the same arguments until it is known."""
    while True:
        try:
            return await call(*args)
        except StoreUnavailable as error:
            sys.stderr.write(f"repeating: {error}\n")


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main() -> None:
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    await writer.take_over(None if "--unknown" in sys.argv else this_process())
    await writer.write_for_ever()


if __name__ == "__main__":
    asyncio.run(main())
