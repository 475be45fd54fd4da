"""Mailboxes that outgrow memory: what is only stored, its order, its bounds, and how it comes back."""

from __future__ import annotations

import asyncio

import pytest
from post import RUNS, Post, client_of, read
from scenario import Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.actors.errors import CorruptRecord
from atoll.persistence.spi import PendingWork
from atoll.sharding.host import Host
from atoll.sharding.resident import Backlog


def backlog_of(host: Host, id: str = "a") -> Backlog:
    backlog = host.shards[0].residents["Post", id].backlog
    assert backlog is not None
    return backlog


def nothing_left(host: Host) -> None:
    holdings = host._holdings
    assert (holdings.in_memory, holdings.bytes_in_memory, holdings.stored, holdings.bytes) == (0, 0, 0, 0)
    assert not any(resident.backlog for shard in host.shards.values() for resident in shard.residents.values())


# ---- spilling


def test_what_a_full_mailbox_has_no_room_for_goes_to_the_store_in_order() -> None:
    """M05, M14: tells are accepted all the same; asks that come behind them keep their place among their sender's."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        other.call(1, "put_slowly", item="slow", seconds=5.0)
        await until(lambda: RUNS["slow"])
        for number in range(1, 21):
            c.tell(number, "put", item=f"{number}", prev=number - 1)
            await c.accepted(number)
        assert a._holdings.stored == 20 - 4
        assert len(a.shards[0].residents["Post", "a"].mailbox) == 4
        c.call(21, "put", item="21", prev=20)
        assert c.answers(21) == [(Status.OVERLOADED, None)]
        await until(lambda: RUNS["4"])
        c.call(21, "put", item="21", prev=20, attempt=2)
        c.tell(22, "put", item="22", prev=21)
        await c.accepted(22)
        assert await c.answer(21) == (Status.OK, 21)
        await until(lambda: RUNS["22"])
        assert await read(s) == ["slow", *(f"{number}" for number in range(1, 23))]
        nothing_left(a)

    play(script, Post, mailbox_commands_max=4, mailbox_page=3)


@pytest.mark.parametrize("bound", [{"accepted_in_memory_max": 10}, {"accepted_in_memory_bytes_max": 85}])
def test_above_the_hosts_bound_accepted_tells_leave_memory(bound: dict[str, int]) -> None:
    """M05, M14: in count or in bytes of arguments; of many entities together; they come back page by page, each entity's in order."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        others = [client_of(s, 20 + n, a) for n in range(5)]
        c = client_of(s, 7, a)
        for n, other in enumerate(others):
            other.call(1, "put_slowly", id=f"e{n}", item=f"slow {n}", seconds=5.0)
        for number in range(1, 51):
            c.tell(number, "put", id=f"e{number % 5}", item=f"{number}", prev=max(0, number - 5))
            await c.accepted(number)
        assert (a._holdings.in_memory, a._holdings.stored) == (10, 40)
        assert a._holdings.bytes_in_memory == 81
        await until(lambda: all(RUNS[f"{number}"] for number in range(1, 51)))
        for n in range(5):
            own = [f"{number}" for number in range(1, 51) if number % 5 == n]
            assert await read(s, f"e{n}") == [f"slow {n}", *own]
        nothing_left(a)

    play(script, Post, mailbox_page=4, **bound)


def test_what_is_unparked_in_front_of_older_entries_does_not_push_them_behind_newer_ones() -> None:
    """M01, M08: what waited behind a failed command stands in front of others' entries when its pause is over. When it is
    accepted and memory is full, those entries stay: what is stored of their senders is newer."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, d, e = client_of(s, 7, a), client_of(s, 8, a), client_of(s, 9, a)
        e.call(1, "put_slowly", id="b", item="slow", seconds=100.0)
        e.call(2, "put", item="warm")
        c.tell(1, "fail", item="poison")
        await c.accepted(1)
        c.call(2, "put", item="7.2", remaining_ms=600_000)
        for number in range(3, 6):
            c.tell(number, "put_slowly", item=f"7.{number}", seconds=3.0, prev=number - 1)
        d.tell(1, "put_slowly", item="8.1", seconds=8.0)
        await d.accepted(1)
        d.tell(2, "put", item="8.2")
        await d.accepted(2)
        for number in (1, 2):
            d.tell(10 + number, "put", id="b", item=f"b{number}")
            await d.accepted(10 + number)
        d.tell(20, "put", item="8.3", prev=2)
        await d.accepted(20)
        assert (a._holdings.in_memory, a._holdings.stored) == (5, 1), "8.3 is only stored, 8.2 is not"
        assert RUNS["7.2"] == 0
        await until(lambda: RUNS["8.3"])
        assert RUNS["7.5"] == 1
        items = await read(s)
        assert [item for item in items if item.startswith("7")] == ["7.2", "7.3", "7.4", "7.5"]
        assert [item for item in items if item.startswith("8")] == ["8.1", "8.2", "8.3"]

    play(script, Post, tell_attempts_max=2, tell_retry_first_s=2.0, accepted_in_memory_max=5)


def test_asks_do_not_starve_behind_tells_that_keep_coming() -> None:
    """M14: an ask waits for what was stored when it came, and not until nothing is stored any more."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        other.call(1, "put_slowly", item="slow", seconds=1.0)
        await until(lambda: RUNS["slow"])
        sent = 0

        async def keep_telling() -> None:
            nonlocal sent
            while True:
                sent += 1
                c.tell(sent, "put", item=f"{sent}", floor=max(1, sent - 40))
                await asyncio.sleep(0.001)

        telling = asyncio.ensure_future(keep_telling())
        await until(lambda: a._holdings.stored > 20)
        other.call(2, "put", item="asked", floor=2, prev=1)
        await until(lambda: a._holdings.stored == 0 or other.answers(2), 20.0)
        assert other.answers(2)
        before = sent
        await asyncio.sleep(1)
        assert sent > before
        telling.cancel()
        await until(lambda: RUNS[f"{sent}"])

    play(script, Post, mailbox_commands_max=6, mailbox_page=2, accepted_in_memory_max=5, accept_after_s=0.0)


# ---- bounds


@pytest.mark.parametrize("bound", ["mailbox_stored_max", "stored_commands_max", "stored_bytes_max"])
def test_at_the_bounds_of_what_is_stored_senders_are_refused(bound: str) -> None:
    """M14: nothing is dropped: they send it again later, and their order holds."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        post = cluster.entity(Post, "a")
        slow = asyncio.ensure_future(post.put_slowly("slow", 10.0))
        await until(lambda: RUNS["slow"])
        other = (await s.client("other")).entity(Post, "a")
        tells = []
        for number in range(20):
            tells.append(asyncio.ensure_future(other.put.using(timeout=900).tell(f"{number}")))
            await asyncio.sleep(0.01)
        await asyncio.sleep(5)
        accepted = sum(tell.done() for tell in tells)
        assert 4 + 6 <= accepted <= 4 + 8
        assert RUNS["0"] == 0
        with pytest.raises(atoll.Overloaded):
            await other.put.using(fail_fast=True).tell("never")
        await slow
        await asyncio.gather(*tells)
        await until(lambda: RUNS["19"])
        assert await read(s) == ["slow", *(f"{number}" for number in range(20))]
        nothing_left(a)

    limit = {"mailbox_stored_max": 6, "stored_commands_max": 6, "stored_bytes_max": 6 * 208}[bound]
    play(script, Post, mailbox_commands_max=4, mailbox_page=3, command_timeout_s=900.0, **{bound: limit})


# ---- takeover


@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_a_thousand_entries_of_one_entity_come_alive_at_its_new_owner(checkpointed: bool) -> None:
    """S08, M05: without being called, page by page, in order, each once; then nothing is left of them anywhere."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await spill(s, {"a": 1000})
        if checkpointed:
            await a.upkeep.checkpoint()
        await s.fail_over(a, b, 0)
        await until(lambda: RUNS["a 999"], 600.0)
        assert await read(s) == [f"a {n}" for n in range(1000)]
        assert set(RUNS.values()) == {1}
        await until(lambda: b.commits.committed == b.commits.staged)
        await b.upkeep.checkpoint()
        assert (await s.store.read_pending([0]))[0].mailboxes == ()
        nothing_left(b)

    play(script, Post, mailbox_page=100, accepted_in_memory_max=150)


def test_a_thousand_entities_with_an_entry_each_come_alive_at_their_new_owner() -> None:
    """S08: a few at a time."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await spill(s, {f"e{n}": 1 for n in range(1000)})
        await s.fail_over(a, b, 0)
        most = 0
        while sum(RUNS.values()) < 1000:
            most = max(most, len(b._paging._resuming))
            await asyncio.sleep(0.0005)
        assert most == 8
        await asyncio.sleep(5)
        assert {f"e{n} 0": 1 for n in range(1000)} == RUNS
        nothing_left(b)
        assert b._paging._permits._value == 8

    play(script, Post, resuming_max=8)


def test_calls_to_an_entity_with_stored_entries_wait_for_those() -> None:
    """S08, M01: whoever calls first after a takeover finds what was accepted before done."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await spill(s, {"a": 30, "b": 30})
        held = s.store_of(b).hold("read_mailbox")
        await s.fail_over(a, b, 0)
        await held.reached()
        c = client_of(s, 7, b, 2)
        c.call(1, "put", id="a", item="asked")
        c.tell(2, "put", id="b", item="told")
        await asyncio.sleep(5)
        assert c.answers(1) == []
        held.let_go()
        assert await c.answer(1) == (Status.OK, 30)
        await c.accepted(2)
        await until(lambda: RUNS["told"])
        assert await read(s, "b") == [*(f"b {n}" for n in range(30)), "told"]
        nothing_left(b)

    play(script, Post, mailbox_page=7)


def test_entries_that_are_done_in_the_log_alone_are_not_run_from_the_tables() -> None:
    """PR10, PR23: the tables are behind: they still have what the log says is done."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        other.call(1, "put_slowly", item="slow", seconds=2.0)
        for number in range(1, 11):
            c.tell(number, "put", item=f"{number}", prev=number - 1)
            await c.accepted(number)
        await a.upkeep.checkpoint()
        assert len(await s.store.read_mailbox(0, "Post", "a")) == 10
        await until(lambda: RUNS["10"] and a.commits.committed == a.commits.staged)
        await s.fail_over(a, b, 0)
        assert await read(s) == ["slow", *(f"{number}" for number in range(1, 11))]
        await asyncio.sleep(5)
        assert {RUNS[f"{number}"] for number in range(1, 11)} == {1}
        nothing_left(b)

    play(script, Post)


async def spill(s: Scenario, entries: dict[str, int]) -> None:
    """Let so many tells be accepted for these entities, which are busy: none of them runs."""
    holder, teller = await s.client("holder"), await s.client("teller")
    slow = [
        asyncio.ensure_future(holder.entity(Post, id).put_slowly.using(timeout=900)("slow", 800.0)) for id in entries
    ]
    await until(lambda: RUNS["slow"] == len(entries))
    tells = [(id, f"{id} {n}") for id, count in entries.items() for n in range(count)]
    await asyncio.gather(*(teller.entity(Post, id).put.using(timeout=900).tell(item) for id, item in tells))
    await holder.client.close()
    await teller.client.close()
    await asyncio.gather(*slow, return_exceptions=True)
    RUNS.clear()


# ---- damage


async def damaged(*_: object) -> None:
    raise CorruptRecord("a row is damaged; restore this store from a backup")


def test_entries_that_cannot_be_read_stop_their_entity_and_no_host() -> None:
    """J14, M05: one damaged row must not end one host after another, nor be overtaken by what its sender sends later: who
    calls that entity is refused, the others of the shard go on."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await client_of(s, 6, a).ask(1, "schedule", name="t", ms=20_000, item="tick")
        await spill(s, {"a": 3})
        s.store_of(b).read_mailbox = damaged
        await s.fail_over(a, b, 0)
        c = client_of(s, 7, b)
        await c.ask(1, "put", id="b", item="x")
        c.call(2, "put", item="refused")
        c.tell(3, "put", item="refused", prev=2)
        assert (await c.answer(2))[0] is Status.OVERLOADED
        assert (await c.answer(3))[0] is Status.OVERLOADED
        await asyncio.sleep(120)
        assert not b.ended.done()
        assert [item for item in RUNS if RUNS[item]] == ["x"]
        assert b._timers._in_flight == {}
        del s.store_of(b).read_mailbox
        c.call(2, "put", item="later", attempt=2)
        await until(lambda: c.answers(2)[-1] == (Status.OK, 3))
        nothing_left(b)

    play(script, Post, tell_attempts_max=2)


def test_timers_that_cannot_be_read_stop_those_of_their_shard_and_no_host() -> None:
    """J14, M10: the host goes on, and so do the timers of its other shards; it is tried again from time to time."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await client_of(s, 7, a).ask(1, "schedule", name="t", ms=1_000, item="x")
        s.store_of(b).read_timers = damaged
        await s.fail_over(a, b, 0)
        await asyncio.sleep(10)
        assert not b.ended.done()
        assert RUNS["x"] == 0
        del s.store_of(b).read_timers
        await asyncio.sleep(120)
        assert RUNS["x"] == 1

    play(script, Post)


def test_a_shard_that_cannot_be_recovered_stays_closed_and_those_taken_with_it_open() -> None:
    """J14, J15: one damaged row closes its shard, not all that its host's death leaves behind."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0, 1, 2), await s.host()
        read_pending = s.store_of(b).read_pending

        async def read(shards: list[int]) -> list[PendingWork]:
            if 1 in shards:
                await damaged()
            return await read_pending(shards)

        s.store_of(b).read_pending = read
        s.kill(a)
        await s.condemn(a)
        await s.assign(b, 0, 1, 2)
        await until(lambda: len(b.shards) == 2)
        await asyncio.sleep(60)
        assert (set(b.shards), b.ended.done()) == ({0, 2}, False)

    play(script, Post, shards=3)
