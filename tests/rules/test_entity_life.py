"""Entities in a host's memory: leaving, coming back, long histories, async handlers; and clients that look for hosts."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from scenario import Box, Ledger, Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.sharding.messages import Moved


class Leaving(atoll.Entity):
    """Its hooks take their time, so that commands arrive in the middle of them."""

    items: list[str] = atoll.field(default_factory=list)

    async def on_activate(self) -> None:
        await asyncio.sleep(0.05)
        self._active = True

    async def on_passivate(self) -> None:
        await asyncio.sleep(0.05)
        self._active = False

    @atoll.command
    def put(self, item: str) -> int:
        assert self._active, "a turn on an activation that has left"
        self.items.append(item)
        return len(self.items) - 1

    @atoll.query
    def read(self) -> list[str]:
        return self.items


@pytest.mark.parametrize("kind", [Box, Ledger, Leaving])
@pytest.mark.parametrize("seed", range(3))
def test_passivation_while_commands_arrive_loses_none(kind: Any, seed: int) -> None:
    """M13: at random instants around leaving and coming back, each command runs once, on the newest state."""

    async def script(s: Scenario) -> None:
        luck = random.Random(seed)
        a = await s.host(0)
        cluster = await s.client("caller")
        ref = cluster.entity(kind, "a")
        activations = 0
        shard = a.shards[0]
        for number in range(60):
            assert await ref.put(str(number)) == number, seed
            await asyncio.sleep(luck.choice([0.0, 0.9, 1.0, 1.1, 1.5, luck.uniform(0, 2)]))
            activations += not shard.residents
        assert activations > 3, seed
        assert await ref.read() == [str(number) for number in range(60)]
        await cluster.client.close()

    play(script, kind, passivate_idle_s=0.2, checkpoint_s=0.7)


def test_a_command_that_arrives_while_an_entity_leaves_waits_for_it_to_come_back() -> None:
    """M13: the hook runs, the command waits in the mailbox, and its turn is on the new activation."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", kind=Leaving, item="x")
        (resident,) = a.shards[0].residents.values()
        old = resident.activation
        await until(lambda: resident.scheduled)
        c.call(2, "put", kind=Leaving, item="y")
        assert c.answers(2) == []
        assert await c.answer(2) == (Status.OK, 1)
        (resident,) = a.shards[0].residents.values()
        assert resident.activation is not old

    play(script, Leaving, passivate_idle_s=0.2)


def test_the_least_recently_used_leave_above_the_bound() -> None:
    """M13: memory is bounded by count, whatever the idle time; who left comes back when called."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 51):
            await c.ask(number, "put", id=f"e{number}", item="x", floor=number)
        await until(lambda: len(a.shards[0].residents) == 10)
        assert [id for _, id in a.shards[0].residents] == [f"e{n}" for n in range(41, 51)]
        assert await c.ask(51, "put", id="e1", item="y", floor=51) == 1

    play(script, active_entities_max=10)


def test_an_entity_with_a_long_history_is_activated_from_its_snapshot() -> None:
    """M16: 100,000 commands to one entity, and its next cold activation reads no more than a snapshot's distance of
    commits, from the tables of the next owner."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        total = 100_000
        for start in range(1, total, 1000):
            for number in range(start, start + 1000):
                c.call(number, "put", kind=Ledger, item=str(number), floor=start)
            await c.answer(start + 999)
            c.heard.clear()
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        await s.give(b, 0)
        read: list[int] = []
        commits = s.store.read_commits

        async def counted(*args: Any, **more: Any) -> Any:
            found = await commits(*args, **more)
            read.append(len(found))
            return found

        s.store.read_commits = counted  # type: ignore[method-assign] # to count what activation reads
        d = s.raw_client(7, b, 2)
        assert await d.ask(total + 1, "total", kind=Ledger, floor=total + 1) == total
        assert read
        assert read[0] < s.settings.snapshot_every

    play(script, Ledger, checkpoint_commands=5000, checkpoint_s=1.0)


# ---- async handlers


class Patient(atoll.Entity):
    steps: list[str] = atoll.field(default_factory=list)

    @atoll.command
    async def with_timeout(self) -> str:
        try:
            async with asyncio.timeout(0.5):
                await asyncio.sleep(60)
        except TimeoutError:
            self.steps.append("timed out")
        return self.steps[-1]

    @atoll.command
    async def with_group(self) -> list[int]:
        async def work(number: int) -> int:
            await asyncio.sleep(0.1 * number)
            return number

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(number)) for number in (3, 1, 2)]
        self.steps.append("grouped")
        return [task.result() for task in tasks]

    @atoll.command
    async def with_failing_group(self) -> None:
        async def fail() -> None:
            raise ValueError("on purpose")

        self.steps.append("never kept")
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(60)

    @atoll.command
    async def that_cancels_itself(self) -> None:
        self.steps.append("never kept")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    @atoll.command
    async def with_lock_and_queue(self) -> int:
        queue: asyncio.Queue[int] = asyncio.Queue()
        feeder = asyncio.ensure_future(queue.put(5))
        async with asyncio.Lock():
            value = await asyncio.wait_for(queue.get(), 1)
        await feeder
        self.steps.append("queued")
        return value

    @atoll.query
    def read(self) -> list[str]:
        return self.steps


def test_asyncio_works_inside_async_handlers() -> None:
    """M18: time-outs, task groups, current_task, locks, queues and cancellation: each handler runs in a real task that
    outlives it, and whatever it does to that task, the entity and its neighbours go on."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("caller")
        one, two = cluster.entity(Patient, "one"), cluster.entity(Patient, "two")
        for _ in range(3):
            assert await one.with_timeout() == "timed out"
            assert await one.with_group() == [3, 1, 2]
            for failing in (one.with_failing_group, one.that_cancels_itself, two.that_cancels_itself):
                with pytest.raises(atoll.HandlerFailed):
                    await failing()
            assert await one.with_lock_and_queue() == 5
        both = await asyncio.gather(one.with_timeout(), two.with_timeout(), one.with_group(), two.with_group())
        assert both == ["timed out", "timed out", [3, 1, 2], [3, 1, 2]]
        assert await one.read() == ["timed out", "grouped", "queued"] * 3 + ["timed out", "grouped"]
        assert await two.read() == ["timed out", "grouped"]
        await cluster.client.close()

    play(script, Patient)


def test_waiting_handlers_do_not_stop_the_others() -> None:
    """M18: more entities wait than there are runners: those queue, plain turns of entities in memory go on, and all are
    answered."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("caller")
        quick = cluster.entity(Box, "quick")
        assert await quick.put("x") == 0
        slow = [asyncio.ensure_future(cluster.entity(Box, f"s{n}").put_slowly("x", 1.0)) for n in range(10)]
        await asyncio.sleep(0.5)
        assert await quick.put.using(timeout=0.1)("y") == 1
        assert await asyncio.gather(*slow) == [0] * 10
        await cluster.client.close()

    play(script, runners_max=3)


# ---- stale tables and missing coordinators


def test_a_client_with_a_stale_table_is_redirected() -> None:
    """S10: told `Moved` with the new owner, it succeeds there within its deadline."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        assert await box.put("x") == 0
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        await s.give(b, 0)
        assert await box.put.using(timeout=1.0)("y") == 1
        route = cluster.client.route(0)
        assert route is not None
        assert route.incarnation == b.incarnation
        await cluster.client.close()

    play(script)


def test_a_host_that_gave_a_shard_away_says_who_has_it() -> None:
    """S10: `Moved` names epoch, owner and address as soon as the row does."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        await s.give(b, 0)
        await until(lambda: (route := a.table.route(0)) is not None and route.incarnation == b.incarnation)
        c = s.raw_client(7, a)
        c.call(1, "put", item="x")
        assert c.heard[-1] == Moved(0, 1, (await s.row()).epoch, b.incarnation, b.address)

    play(script)


def test_a_client_that_starts_while_the_coordinator_is_down_works_from_any_host() -> None:
    """S10: it knows one host, which has none of the shards; that one knows who has."""

    async def script(s: Scenario) -> None:
        s.start_coordinator(hosts_wanted=2)
        a, b = await s.host(), await s.host()
        await until(lambda: len(a.shards) == len(b.shards) == 2)
        s.coordinator.kill()
        await until(lambda: len(a.table) == len(b.table) == 4)
        for host in (a, b):
            s.addresses = lambda host=host: [host.address]  # type: ignore[method-assign] # all that this client knows
            cluster = await s.client(f"from-{host.incarnation}")
            for number in range(8):
                await cluster.entity(Box, f"e{number}").put.using(timeout=1.0)("x")
            await cluster.client.close()
        reader = await s.client("reader")
        for number in range(8):
            assert await reader.entity(Box, f"e{number}").read() == ["x", "x"]
        await reader.client.close()

    play(script, shards=4)
