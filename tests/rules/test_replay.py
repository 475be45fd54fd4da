"""Tables plus later log records equal the replay from the beginning, whatever happened in between."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from scenario import Box, Ledger, RawClient, Scenario, play, until

from atoll.persistence.records import Record, decode_batch
from atoll.sharding.host import Host

ENTITIES = [(Box, "a"), (Box, "b"), (Ledger, "c"), (Ledger, "d")]


class Story:
    """A client that does one thing after another, and a model that is a dictionary of lists."""

    def __init__(self, s: Scenario, luck: random.Random) -> None:
        self.s = s
        self.luck = luck
        self.items: dict[tuple[Any, str], list[str]] = defaultdict(list)
        self.number = 0
        self.generation = 0
        self.host: Host
        self.client: RawClient
        self.appended: dict[int, Record] = {}
        """position -> record, of all logs: the replay from the beginning."""

    async def serve(self, host: Host) -> None:
        self.generation += 1
        self.host = host
        self.client = self.s.raw_client(7, host, self.generation)

    async def command(self) -> None:
        kind, id = self.luck.choice(ENTITIES)
        items = self.items[kind, id]
        self.number += 1
        what = self.luck.random()
        more: dict[str, Any] = {"kind": kind, "id": id, "floor": max(1, self.number - self.luck.randrange(4))}
        if what < 0.75:
            item = f"i{self.number}"
            method = "put_and_leave" if self.luck.random() < 0.3 else "put"
            place = await self.client.ask(self.number, method, item=item, **more)
            items.append(item)
            assert kind is Ledger or place == len(items) - 1
        elif what < 0.85:
            self.client.call(self.number, "put_and_fail", item="never", **more)
            await self.client.answer(self.number)
        else:
            await self.client.ask(self.number, "clear", **more)
            items.clear()

    async def checkpoint(self) -> None:
        await self.s.hosts[self.host.incarnation].run(self.host.upkeep.checkpoint())

    async def fail_over(self) -> None:
        """Killed, perhaps in the middle of a checkpoint."""
        store = self.s.store_of(self.host)
        if self.luck.random() < 0.5 and not store.holds("checkpoint"):
            held = store.hold("checkpoint")
            running = self.s.hosts[self.host.incarnation].run(self.host.upkeep.checkpoint())
            for _ in range(self.luck.randrange(4)):
                await until(lambda: held.waiting or running.done())
                if running.done():
                    break
                held.let_one_go()
            await until(lambda: held.waiting or running.done())
        await self.remember_log()
        heir = await self.s.host()
        if self.luck.random() < 0.5:
            self.s.store_of(heir).hold("checkpoint")
        await self.s.fail_over(self.host, heir, 0)
        await self.serve(heir)

    async def hand_over(self) -> None:
        self.s.store_of(self.host).unhold("checkpoint")
        await self.remember_log()
        assert await self.s.hosts[self.host.incarnation].run(self.host.ownership.release(0))
        target = await self.s.host(0)
        await self.serve(target)

    async def remember_log(self) -> None:
        for name, args in self.s.store_of(self.host).calls:
            if name == "append":
                incarnation, n, content = args
                for record in decode_batch(content, incarnation, n):
                    known = self.appended.setdefault(record.position, record)
                    assert known == record, "two records at one position"

    async def check(self) -> None:
        """What the entities answer, what the model says, and what the replay of all records gives are one."""
        await self.remember_log()
        assert sorted(self.appended) == list(range(1, len(self.appended) + 1))
        for kind, id in ENTITIES:
            self.number += 1
            found = await self.client.ask(self.number, "read", kind=kind, id=id, floor=self.number)
            assert found == self.items[kind, id], (kind, id)
            seq = 0
            for _, record in sorted(self.appended.items()):
                if (record.kind, record.id) == (kind.__name__, id) and record.seq:
                    seq += 1
                    assert record.seq == seq, "versions go on, over all owners"
        history = await self.s.store.read_history(0)
        of_log = [
            r for _, r in sorted(self.appended.items()) if r.events and r.position <= (await self.s.row()).position
        ]
        assert [commit.position for commit in history] == [record.position for record in of_log]


@pytest.mark.parametrize("seed", range(25))
def test_tables_and_log_together_are_the_replay(seed: int) -> None:
    """J05, J09, J16, PR06, PR08, PR10, PR11: after any sequence of commits, deletions, failures, checkpoints (whole and cut
    off), passivations, handoffs and failovers."""

    async def script(s: Scenario) -> None:
        luck = random.Random(seed)
        story = Story(s, luck)
        await story.serve(await s.host(0))
        for _ in range(80):
            what = luck.random()
            if what < 0.8:
                await story.command()
            elif what < 0.88 and not s.store_of(story.host).holds("checkpoint"):
                await story.checkpoint()
            elif what < 0.94:
                await story.fail_over()
            elif what < 0.97:
                await story.hand_over()
            else:
                await story.check()
        await story.check()
        await story.fail_over()
        await story.check()

    play(script, snapshot_every=5, table_write_rows=1, passivate_idle_s=luck_of_idleness(seed))


def luck_of_idleness(seed: int) -> float:
    """Entities leave at every look, or only when they ask to."""
    return (0.001, 600.0)[seed % 2]
