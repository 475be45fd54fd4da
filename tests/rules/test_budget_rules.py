"""What a host keeps in memory for its callers: how much, whose, and what becomes of it while the store is stuck."""

from __future__ import annotations

import asyncio

import pytest
from scenario import Box, RawClient, Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.sharding.budget import COMMAND_BYTES
from atoll.sharding.host import Host
from atoll.sharding.messages import Answer

BIG = "x" * 10_000


class Slow(atoll.Entity):
    """Remembers sizes only, so that nothing but what waits is large."""

    sizes: list[int] = atoll.field(default_factory=list)

    @atoll.command
    async def take(self, item: str, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        self.sizes.append(len(item))
        return len(self.sizes) - 1


def flood(client: RawClient, first: int, count: int, item: str = BIG, **more: object) -> None:
    """Calls to one entity of its own, which nobody answers for a while."""
    for number in range(first, first + count):
        client.call(number, "take", id=f"of {client.client}", prev=max(0, number - 1), item=item, **more)  # type: ignore[arg-type] # options of a call


async def busy(s: Scenario, host: Host, *clients: int, seconds: float = 20.0) -> list[RawClient]:
    """Clients whose own entities are in a long turn each."""
    found = []
    for client in clients:
        raw = s.raw_client(client, host, kind=Slow)
        raw.call(1, "take", id=f"of {client}", item="", seconds=seconds, remaining_ms=900_000)
        found.append(raw)
    await until(lambda: all(resident.running for resident in host.shards[0].residents.values()))
    return found


# ---- bytes


def test_a_noisy_client_is_not_read_while_the_others_are() -> None:
    """R05, M14: above half of the budget, whoever has more than its share waits; when its commands have run it is read
    again, and everybody is answered."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        noisy, quiet = await busy(s, host, 7, 8)
        flood(noisy, 2, 60, remaining_ms=900_000)
        flood(quiet, 2, 5, remaining_ms=900_000)
        await until(lambda: noisy.held)
        assert (quiet.held, host.budget.full) == (False, False)
        for number in range(2, 62):
            assert (await noisy.answer(number))[0] is Status.OK
        await until(lambda: not noisy.held)
        assert (await quiet.answer(6))[0] is Status.OK

    play(script, Slow, queued_bytes_max=1_000_000)


def test_above_the_budget_nobody_is_read_until_there_is_room() -> None:
    """R05, M14: many clients with a little each fill it as well."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        said: list[bool] = []
        host.budget.hold_all = said.append
        clients = await busy(s, host, *range(10, 30), seconds=5.0)
        for client in clients:
            flood(client, 2, 6, remaining_ms=900_000)
        await until(lambda: said == [True])
        assert not any(client.closed for client in clients)
        for client in clients:
            assert (await client.answer(7))[0] is Status.OK
        await until(lambda: said == [True, False])
        assert not any(client.held for client in clients)

    play(script, Slow, queued_bytes_max=1_000_000)


def test_less_is_granted_as_the_budget_fills_and_honest_clients_wait() -> None:
    """R05, M14: nobody is sent away for what it had under way when its window shrank; everything is answered, and
    afterwards all have their whole window again."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        server = s.running[host.incarnation].server
        shares: list[float] = []
        narrow = host.budget.narrow
        host.budget.narrow = lambda share: (shares.append(share), narrow(share))[1]
        clients = [await s.client(name) for name in "XYZ"]
        asks = [
            asyncio.ensure_future(client.entity(Slow, f"{n % 7}").take.using(timeout=900)(BIG, 0.05))
            for client in clients
            for n in range(200)
        ]
        await asyncio.gather(*asks)
        await until(lambda: server.window_share == 1)
        assert min(shares) == 1 / 16
        assert s.unanswered() == (0, 0)
        assert [client.client._generation for client in clients] == [1, 1, 1]
        host.memory_seen(0.95)
        assert server.window_share == 1 / 16
        host.memory_seen(0.5)
        assert server.window_share == 1

    play(script, Slow, queued_bytes_max=1_000_000, window_commands=256)


def test_what_is_staged_and_not_durable_counts_too() -> None:
    """R01, R05: while the store does not answer, nothing waits in mailboxes at first."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        said: list[bool] = []
        host.budget.hold_all = said.append
        c = s.raw_client(7, host)
        held = s.store_of(host).hold("append")
        for number in range(1, 101):
            c.call(number, "put", id=f"e{number}", item=BIG)
        await until(lambda: host.commits.uncommitted_bytes > 1_000_000)
        for number in range(101, 201):
            c.call(number, "put", id=f"e{number}", item=BIG)
        await until(lambda: said == [True])
        held.let_go()
        await until(lambda: said == [True, False])
        assert (await c.answer(200))[0] is Status.OK
        assert host.commits.uncommitted_bytes == 0

    play(script, queued_bytes_max=1_000_000)


def test_a_mailbox_is_bounded_in_bytes_and_takes_one_command_whatever_its_size() -> None:
    """M14: and says when it should have room: its queue moves as fast as who is next has waited."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await busy(s, host, 7)
        flood(c, 2, 1, "x" * 60_000, remaining_ms=900_000)
        await asyncio.sleep(4)
        flood(c, 3, 1, remaining_ms=900_000)
        assert c.answers(3) == [(Status.OVERLOADED, None)]
        refused = c.heard[-1]
        assert isinstance(refused, Answer)
        assert 1_900 < refused.retry_after_ms < 2_100
        assert (await c.answer(2))[0] is Status.OK
        flood(c, 3, 1, remaining_ms=900_000, attempt=2)
        await until(lambda: c.answers(3)[-1] == (Status.OK, 2))

    play(script, Slow, mailbox_bytes_max=50_000)


def test_who_fails_fast_hears_when_to_come_back() -> None:
    """M14: the time is the host's guess."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await busy(s, host, 7)
        flood(c, 2, 4, "x", remaining_ms=900_000)
        await asyncio.sleep(6)
        cluster = await s.client("X")
        with pytest.raises(atoll.Overloaded) as refused:
            await cluster.entity(Slow, "of 7").take.using(fail_fast=True)("x")
        assert 2.9 < refused.value.retry_after_s < 3.1

    play(script, Slow, mailbox_commands_max=4)


def test_a_look_counts_what_waits_now() -> None:
    """What ran, was given back or went with its shard is no longer there: nothing can be forgotten in the account."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await busy(s, host, 7)
        flood(c, 2, 10, remaining_ms=900_000)
        per_command = COMMAND_BYTES + len(BIG)
        now = asyncio.get_running_loop().time()
        (size,) = host.budget._counted(now).values()
        assert 10 * per_command < size < 11 * per_command
        assert await host.ownership.release(0) is False, "a turn outlasts the deadline"
        assert host.budget._counted(now) == {}, "they were sent back"
        host.budget.look()
        assert list(host.shards[0].loaded) == []

    play(script, Slow, release_deadline_s=1.0)


# ---- recorded replies


class Echo(atoll.Entity):
    """Its answers are as large as its questions."""

    @atoll.command
    async def say(self, item: str, seconds: float = 0.0) -> str:
        await asyncio.sleep(seconds)
        return item

    @atoll.query
    def hear(self, item: str) -> str:
        return item


def test_replies_that_nobody_confirms_are_bounded_in_bytes() -> None:
    """J17, R05: at the bound a client runs only the lowest number that it lacks, one after the other; the rest is sent
    back, did not run, and runs when there is room again. Queries go on."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host, kind=Echo)
        c.call(1, "say", id="slow", item="", seconds=20.0, remaining_ms=900_000)
        number = 1
        while not host.budget.replies_full:
            number += 1
            c.call(number, "say", id=f"{number}", item=BIG, remaining_ms=900_000)
            await asyncio.sleep(0.01)
        remembered = host.shards[0].replies.bytes
        assert 100_000 < remembered < 300_000
        c.call(number + 1, "say", id="more", item=BIG)
        assert c.answers(number + 1) == [(Status.OVERLOADED, None)]
        c.call(number + 2, "hear", id="more", item=BIG)
        assert (await c.answer(number + 2))[0] is Status.OK
        assert host.shards[0].replies.bytes == remembered
        await c.answer(1)
        c.call(number + 1, "say", id="more", item=BIG, floor=number + 1, attempt=2)
        await until(lambda: c.answers(number + 1)[-1] == (Status.OK, BIG))
        await until(lambda: not host.budget.replies_full)
        assert await c.ask(number + 3, "say", id="more", floor=number + 1, item=BIG) == BIG

    play(script, Echo, replies_bytes_max=100_000)


def test_an_idle_client_says_that_it_has_all_its_answers() -> None:
    """J17: nothing is remembered for those who have nothing under way; a command that is sent later finds everything as
    it should be."""

    async def script(s: Scenario) -> None:
        host = await s.host(0, 1, 2)
        cluster = await s.client("X")
        ids = [f"{n}" for n in range(50)]
        for _ in range(2):
            assert await asyncio.gather(*(cluster.entity(Echo, id).say(BIG) for id in ids)) == [BIG] * 50
            assert sum(shard.replies.bytes for shard in host.shards.values()) > 50 * len(BIG) // 2
            await asyncio.sleep(2.5)
            assert [shard.replies.bytes for shard in host.shards.values()] == [0, 0, 0]

    play(script, Echo, shards=3)


# ---- a stuck store


def test_while_the_store_is_stuck_no_turn_begins_and_callers_hear_in_time_that_theirs_did_not() -> None:
    """R01, M12: what ran and is not durable has an unknown outcome; the rest surely did not run, and its callers are told
    so before their deadline. Afterwards everything goes on, and nothing of it acts any more."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        cluster = await s.client("X")
        box = cluster.entity(Box, "a")
        assert await box.put("first") == 0
        held = s.store_of(host).hold("append")
        ran = [asyncio.ensure_future(cluster.entity(Box, f"b{n}").put.using(timeout=2)("b")) for n in range(40)]
        await until(lambda: host.commits.is_full)
        began = asyncio.get_running_loop().time()
        late = [asyncio.ensure_future(box.put.using(timeout=1)(f"late {n}")) for n in range(5)]
        patient = asyncio.ensure_future(box.put.using(timeout=60)("patient"))
        ends = await asyncio.gather(*late, return_exceptions=True)
        assert [type(end) for end in ends] == [atoll.Unavailable] * 5
        assert 0.8 < asyncio.get_running_loop().time() - began < 1.0
        fates = [type(end) for end in await asyncio.gather(*ran, return_exceptions=True)]
        assert set(fates) == {atoll.OutcomeUnknown, atoll.Unavailable}
        assert host.commits.staged - host.commits.committed <= 12
        held.let_go()
        assert await patient == 1
        assert await box.put("after") == 2
        assert await box.read() == ["first", "patient", "after"]
        written = [len(await cluster.entity(Box, f"b{n}").read()) for n in range(40)]
        assert [fate is atoll.OutcomeUnknown for fate in fates] == [bool(count) for count in written]

    play(script, uncommitted_commands_max=10)


def test_a_second_copy_of_a_command_is_not_given_back() -> None:
    """R01, PR20: of a repeat, or of a command under an ID, another copy may be elsewhere: nobody may say that it did not
    run."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host)
        await c.ask(1, "put", item="warm")
        s.store_of(host).hold("append")
        for number in range(2, 6):
            c.call(number, "put", id=f"b{number}", item="x")
        await until(lambda: host.commits.is_full)
        c.call(10, "put", item="repeat", attempt=2, remaining_ms=1000)
        c.call(11, "put", item="named", command_id="order-1", remaining_ms=1000)
        c.call(12, "put", item="plain", remaining_ms=1000)
        assert (await c.answer(12))[0] is Status.STORE_AWAY
        await asyncio.sleep(5)
        assert (c.answers(10), c.answers(11)) == ([], [])

    play(script, uncommitted_commands_max=2)


# ---- a full memory


def test_a_host_whose_memory_fills_lets_entities_go_and_less_wait_until_it_is_eased() -> None:
    """R05, M13: what left comes back when it is called; nobody is refused for good."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host)
        for number in range(1, 101):
            await c.ask(number, "put", id=f"e{number}", item="x")
        await asyncio.sleep(3)
        assert host.entities == 100
        host.memory_seen(0.85)
        await asyncio.sleep(3.5)
        assert 30 < host.entities <= 43
        host.memory_seen(0.95)
        assert host.budget._bytes_max == s.settings.queued_bytes_max // 16
        await asyncio.sleep(30)
        assert host.entities == 0
        host.memory_seen(0.5)
        assert await c.ask(101, "put", id="e1", item="y") == 1
        assert host.budget._bytes_max == s.settings.queued_bytes_max
        assert await c.ask(102, "put", id="e2", item="z") == 1
        await asyncio.sleep(3)
        assert host.entities == 2

    play(script)
