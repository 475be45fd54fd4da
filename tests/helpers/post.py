"""An entity for scripts about delivery: sends, schedules, fails and kills as it is told, and counts what it ran."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from datetime import timedelta
from typing import ClassVar

from scenario import RawClient, Scenario, until
from simulator.loop import current_process

import atoll
from atoll.persistence.records import DeadLetterRow
from atoll.sharding.host import Host

RUNS: Counter[str] = Counter()
"""How often each item was tried, on all hosts together: a turn that fails takes nothing back here. Cleared by tests."""


class Post(atoll.Entity):
    """Keeps items; sends, schedules, fails and kills as it is told."""

    broken: ClassVar[bool] = False
    """While it is set, no entity of this kind can be activated."""

    items: list[str] = atoll.field(default_factory=list)

    async def on_activate(self) -> None:
        if self.broken:
            raise RuntimeError("broken")

    @atoll.command
    def put(self, item: str) -> int:
        RUNS[item] += 1
        self.items.append(item)
        return len(self.items) - 1

    @atoll.command
    async def put_slowly(self, item: str, seconds: float) -> int:
        RUNS[item] += 1
        await asyncio.sleep(seconds)
        self.items.append(item)
        return len(self.items) - 1

    @atoll.command
    def leave_alone(self, item: str) -> None:
        """A command that changes nothing."""
        RUNS[item] += 1

    @atoll.command
    def fail(self, item: str, times: int = 10**6) -> None:
        """Fail so many times, at the very end."""
        RUNS[item] += 1
        self.items.append(item)
        self.context.send(self.context.entity(Post, "other").put, f"{item} sent")
        self.context.schedule(f"{item} timer", timedelta(), self.put, f"{item} ticked")
        self.context.cancel("kept")
        if RUNS[item] <= times:
            raise RuntimeError(f"on purpose: {item}")

    @atoll.command
    def fail_once(self, item: str) -> None:
        RUNS[item] += 1
        self.items.append(item)
        if RUNS[item] == 1:
            raise RuntimeError(f"on purpose: {item}")

    @atoll.command
    async def fail_slowly(self, item: str, seconds: float, times: int) -> None:
        RUNS[item] += 1
        await asyncio.sleep(seconds)
        if RUNS[item] <= times:
            raise RuntimeError(f"on purpose: {item}")
        self.items.append(item)

    @atoll.command
    async def tell_and_ask(self, to: str, items: list[str], seconds: float) -> None:
        """Tell the first, wait, ask the second."""
        other = self.context.entity(Post, to)
        await other.put.tell(items[0])
        await asyncio.sleep(seconds)
        await other.put(items[1])

    @atoll.command
    async def ask_and_give_up(self, to: str, item: str, wait_s: float, timeout_s: float) -> None:
        await asyncio.sleep(wait_s)
        with contextlib.suppress(atoll.OutcomeUnknown, atoll.NotExecuted):
            await self.context.entity(Post, to).put_slowly.using(timeout=timeout_s)(item, 0.1)

    @atoll.command
    def refuse(self, item: str) -> None:
        RUNS[item] += 1
        raise atoll.Rejected(f"not {item}")

    @atoll.command
    async def kill(self, item: str, times: int = 10**6) -> None:
        """End this process."""
        RUNS[item] += 1
        if RUNS[item] <= times:
            process = current_process()
            assert process is not None
            process.kill()
            await asyncio.sleep(0)
        self.items.append(item)

    @atoll.command
    def send(self, to: str, items: list[str]) -> None:
        for item in items:
            self.context.send(self.context.entity(Post, to).put, item)

    @atoll.command
    def send_what(self, to: str, what: str, item: str) -> None:
        self.context.send(getattr(self.context.entity(Post, to), what), item)

    @atoll.command
    def fan_out(self, items: list[str], through: str, to: str) -> None:
        for item in items:
            self.context.send(self.context.entity(Post, through).pass_on, item, to)

    @atoll.command
    def pass_on(self, item: str, to: str) -> None:
        RUNS[item] += 1
        self.items.append(item)
        self.context.send(self.context.entity(Post, to).put, f"{item} passed on")

    @atoll.command
    def schedule(self, name: str, ms: int, item: str) -> None:
        self.context.schedule(name, timedelta(milliseconds=ms), self.put, item)

    @atoll.command
    def schedule_what(self, name: str, ms: int, what: str, item: str) -> None:
        self.context.schedule(name, timedelta(milliseconds=ms), getattr(self, what), item)

    @atoll.command
    def schedule_passing_on(self, name: str, ms: int, item: str, to: str) -> None:
        self.context.schedule(name, timedelta(milliseconds=ms), self.pass_on, item, to)

    @atoll.command
    def repeat(self, name: str, every_ms: int, item: str, missed: str = "coalesce") -> None:
        every = timedelta(milliseconds=every_ms)
        self.context.schedule(name, every, self.put, item, every=every, missed=missed)

    @atoll.command
    def schedule_again(self, name: str, ms: int, times: int, tick: int = 0) -> None:
        """Tick that many times, by setting it anew each time."""
        if tick:
            self.items.append(f"{name}{tick}")
        if tick < times:
            self.context.schedule(name, timedelta(milliseconds=ms), self.schedule_again, name, ms, times, tick + 1)

    @atoll.command
    def repeat_until(self, name: str, every_ms: int, times: int) -> None:
        """Tick that many times, by cancelling what repeats."""
        if self.context.due is None:
            every = timedelta(milliseconds=every_ms)
            self.context.schedule(name, every, self.repeat_until, name, every_ms, times, every=every)
            return
        ticks = sum(item.startswith(name) for item in self.items) + 1
        self.items.append(f"{name}{ticks}")
        if ticks == times:
            self.context.cancel(name)

    @atoll.command
    async def wait_a_second(self, item: str) -> None:
        RUNS[item] += 1
        await asyncio.sleep(1.0)

    @atoll.command
    def cancel(self, name: str) -> None:
        self.context.cancel(name)

    @atoll.command
    def clear(self) -> None:
        self.context.delete()

    @atoll.command
    def clear_and_schedule(self, name: str, ms: int, item: str) -> None:
        self.context.schedule(f"{name} before", timedelta(milliseconds=ms), self.put, f"{item} before")
        self.context.delete()
        self.context.schedule(name, timedelta(milliseconds=ms), self.put, item)

    @atoll.query
    def read(self) -> list[str]:
        return self.items


def client_of(s: Scenario, number: int, host: Host, generation: int = 1) -> RawClient:
    return s.raw_client(number, host, generation, kind=Post)


async def read(s: Scenario, id: str = "a") -> list[str]:
    reader = await s.client("reader")
    items = await reader.entity(Post, id).read()
    await reader.client.close()
    return items


async def dead_letters(s: Scenario, shard: int = 0) -> list[DeadLetterRow]:
    """Those of a shard, once everything is written."""
    owner = (await s.row(shard)).owner
    assert owner is not None
    host = s.running[owner].host
    await until(lambda: host.commits.committed == host.commits.staged)
    await s.hosts[owner].run(host.upkeep.checkpoint())
    return await s.store.read_dead_letters(shard)
