"""Deadlines: when callers hear at the latest, and that what they hear is true."""

from __future__ import annotations

import asyncio

import pytest
from scenario import Box, Scenario, play, until

import atoll
from atoll.actors.calls import Mode, Status


async def hold_up(s: Scenario, seconds: float) -> None:
    """Somebody else's command keeps the entity "a" for so long."""
    (host,) = (running.host for running in s.running.values())
    other = s.raw_client(99, host)
    other.call(1, "put_slowly", item="slow", seconds=seconds, remaining_ms=900_000)
    await until(lambda: host.shards[0].residents["Box", "a"].running is not None)


def test_what_expires_behind_a_slow_turn_is_answered_then_and_not_when_its_turn_comes() -> None:
    """M12: its caller hears within a moment of the deadline that it did not run, though its turn is a minute away; and
    what waits behind it keeps its place."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        await hold_up(s, 60)
        box = (await s.client("X")).entity(Box, "a")
        began = asyncio.get_running_loop().time()
        late = [asyncio.ensure_future(box.put.using(timeout=1)(f"late {n}")) for n in range(5)]
        patient = [asyncio.ensure_future(box.put.using(timeout=900)(f"{n}")) for n in range(3)]
        ends = await asyncio.gather(*late, return_exceptions=True)
        assert [type(end) for end in ends] == [atoll.DeadlineExceeded] * 5
        assert 1.0 <= asyncio.get_running_loop().time() - began < 1.2
        assert await asyncio.gather(*patient) == [1, 2, 3]
        assert await box.read() == ["slow", "0", "1", "2"]
        assert s.unanswered() == (0, 0)

    play(script)


def test_a_tell_that_nobody_accepted_expires_like_an_ask() -> None:
    """M12: where nothing is stored, nobody can accept it. One that is accepted has no deadline any more."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await hold_up(s, 5)
        c = s.raw_client(7, host)
        c.tell(1, "put", item="told", remaining_ms=1000)
        c.call(2, "put", item="asked", prev=1, remaining_ms=1000)
        assert await c.answer(1) == (Status.OK, None), "accepted"
        assert (await c.answer(2))[0] is Status.DEADLINE_EXCEEDED
        await asyncio.sleep(5)
        assert await c.ask(3, "read") == ["slow", "told"]
        assert c.answers(1) == [(Status.OK, None)]

    play(script)


def test_a_repeat_of_what_expired_hears_the_same_and_never_runs() -> None:
    """PR20, PR21, M12: an answer like any other: remembered until the floor passes it."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await hold_up(s, 5)
        c = s.raw_client(7, host)
        c.call(1, "put", item="late", remaining_ms=500)
        assert (await c.answer(1))[0] is Status.DEADLINE_EXCEEDED
        c.call(1, "put", item="late", remaining_ms=60_000, attempt=2)
        c.call(2, "put", item="next", prev=1, remaining_ms=60_000)
        assert await c.answer(2) == (Status.OK, 1)
        assert [status for status, _ in c.answers(1)] == [Status.DEADLINE_EXCEEDED] * 2

    play(script)


def test_what_its_client_gave_up_while_it_waited_is_only_dropped() -> None:
    """PR26: its number is below the floor: nobody would hear the answer, and it takes no room any more."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await hold_up(s, 60)
        c = s.raw_client(7, host)
        c.call(1, "put", item="given up", remaining_ms=1000)
        c.call(2, "put", id="b", item="on", floor=2, remaining_ms=1000)
        assert await c.answer(2) == (Status.OK, 0)
        await until(lambda: not host.shards[0].residents["Box", "a"].mailbox)
        assert c.answers(1) == []

    play(script)


@pytest.mark.parametrize(("timeout_s", "latest_s"), [(1.0, 1.5), (0.2, 0.4)])
def test_a_caller_hears_half_a_second_after_its_deadline_at_the_latest(timeout_s: float, latest_s: float) -> None:
    """M12: also where nobody can tell what became of it; with a short time-out, within that once more. A query, which
    changes nothing, ends with its deadline."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        box = (await s.client("X")).entity(Box, "a")
        assert await box.put("first") == 0
        s.hosts[host.incarnation].pause()
        began = asyncio.get_running_loop().time()
        command = asyncio.ensure_future(box.put.using(timeout=timeout_s)("x"))
        with pytest.raises(atoll.DeadlineExceeded):
            await box.read.using(timeout=timeout_s)()
        assert asyncio.get_running_loop().time() - began < timeout_s + 0.05
        with pytest.raises(atoll.OutcomeUnknown, match=f"no answer within {timeout_s:g} s"):
            await command
        assert latest_s <= asyncio.get_running_loop().time() - began < latest_s + 0.05

    play(script)


def test_what_is_answered_within_that_moment_counts() -> None:
    """M12: a turn that began in time and ended a little late: its caller gets the answer and not a riddle."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        box = (await s.client("X")).entity(Box, "a")
        assert await box.put_slowly.using(timeout=1.0)("x", 1.2) == 0
        with pytest.raises(atoll.OutcomeUnknown):
            await box.put_slowly.using(timeout=1.0)("y", 2.0)

    play(script)


def test_what_never_left_ends_with_its_deadline_and_did_not_run() -> None:
    """M12, M14: nobody needs to be asked about it."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        await hold_up(s, 60)
        cluster = await s.client("X")
        filling = [asyncio.ensure_future(cluster.entity(Box, "a").put.using(timeout=900)(f"{n}")) for n in range(8)]
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(atoll.NotExecuted):
            await cluster.entity(Box, "a").put.using(timeout=1.0)("late")
        assert asyncio.get_running_loop().time() - began < 1.05
        await asyncio.gather(*filling)

    play(script)


def test_expired_work_under_a_callers_id_leaves_no_trace() -> None:
    """M12, M04: the ID may be used again, and then it runs."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await hold_up(s, 5)
        c = s.raw_client(7, host)
        c.call(1, "put", item="x", command_id="order-1", remaining_ms=500, mode=Mode.ASK)
        assert (await c.answer(1))[0] is Status.DEADLINE_EXCEEDED
        await asyncio.sleep(6)
        assert await c.ask(2, "put", item="x", command_id="order-1") == 1

    play(script)
