"""Dead letters: what failed too often or was refused, set aside with its error, and replayed or dropped on request."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from post import RUNS, Post, client_of, dead_letters, read
from scenario import Scenario, play, until

from atoll.actors.calls import Status
from atoll.actors.errors import CorruptRecord
from atoll.sharding.letters import DROP, REPLAY
from atoll.sharding.messages import OutOfOrder


def test_a_tell_that_keeps_failing_is_set_aside_with_its_error() -> None:
    """M08: after growing pauses, in one record with the end of its entry."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        runs: list[float] = []
        c.tell(1, "fail", item="poison")
        await c.accepted(1)
        loop = asyncio.get_running_loop()
        while len(runs) < 5:
            await until(lambda: RUNS["poison"] > len(runs))
            runs.append(loop.time())
        pauses = [later - earlier for earlier, later in itertools.pairwise(runs)]
        assert all(pause <= 1.0 * 2**n for n, pause in enumerate(pauses, 1))
        assert sum(pauses) > 1.0
        (row,) = await dead_letters(s)
        letter = row.letter
        assert (row.kind, row.id, letter.method, letter.client, letter.number) == ("Post", "a", "fail", 7, 1)
        assert (letter.attempts, letter.reason) == (5, "failed")
        assert "RuntimeError: on purpose: poison" in letter.error
        assert await s.store.read_mailbox(0, "Post", "a") == []
        assert a._holdings.in_memory == 0

    play(script, Post, tell_attempts_max=5, tell_retry_first_s=1.0, tell_retry_max_s=60.0)


def test_its_sender_waits_behind_it_and_nobody_else() -> None:
    """M08: what the same sender sent to that entity later runs after it was set aside, in order, asks too; everybody else,
    and its other entities, go on meanwhile."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        c.tell(1, "fail", item="poison")
        await c.accepted(1)
        c.tell(2, "put", item="2")
        c.call(3, "put", item="3", prev=2, remaining_ms=600_000)
        c.tell(4, "put", item="4", prev=3)
        await c.ask(5, "put", id="elsewhere", item="5")
        for number in range(1, 6):
            await other.ask(number, "put", item=f"other {number}", floor=number)
        await c.accepted(2)
        assert c.answers(3) == c.answers(4) == []
        await c.answer(3)
        await c.accepted(4)
        assert RUNS["poison"] == 4
        assert await read(s) == [*(f"other {number}" for number in range(1, 6)), "2", "3", "4"]

    play(script, Post, tell_attempts_max=4, tell_retry_first_s=2.0, tell_retry_max_s=20.0)


def test_attempts_are_remembered_over_a_failover() -> None:
    """M08: a command that fails does not begin anew with each owner."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = client_of(s, 7, a)
        c.tell(1, "fail", item="poison")
        await until(lambda: RUNS["poison"] == 3 and a.commits.committed == a.commits.staged)
        await s.fail_over(a, b, 0)
        await until(lambda: b.shards[0].dead_letters)
        assert RUNS["poison"] == 5
        assert [row.letter.attempts for row in await dead_letters(s)] == [5]

    play(script, Post, tell_attempts_max=5, tell_retry_first_s=5.0, tell_retry_max_s=60.0)


@pytest.mark.parametrize("accepted_first", [True, False], ids=["accepted before", "at once"])
def test_a_tell_that_is_refused_is_set_aside_at_once(accepted_first: bool) -> None:
    """M08: trying again would not help."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        if accepted_first:
            other.call(1, "put_slowly", item="slow", seconds=1.0)
        else:
            await other.ask(1, "put", item="slow")
        c.tell(1, "refuse", item="x")
        await c.accepted(1)
        await until(lambda: a.shards[0].dead_letters)
        assert RUNS["x"] == 1
        (row,) = await dead_letters(s)
        assert (row.letter.reason, row.letter.error, row.letter.attempts) == ("rejected", "not x", 1)

    play(script, Post)


@pytest.mark.parametrize("after_a_failover", [False, True])
def test_a_replay_runs_once_more_and_a_repeat_of_it_is_only_answered(after_a_failover: bool) -> None:
    """M08: the letter goes in the record that accepts the command again; a repeat, also at the next owner, finds the
    recorded answer."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = client_of(s, 7, a)
        c.tell(1, "fail_slowly", item="x", seconds=0.0, times=2)
        await until(lambda: a.shards[0].dead_letters)
        (row,) = await dead_letters(s)
        if after_a_failover:
            held = s.store_of(a).hold_reply("append")
            c.call(2, REPLAY, number=row.number)
            await held.reached()
            await s.fail_over(a, b, 0)
            c = client_of(s, 7, b, 2)
        c.call(2, REPLAY, number=row.number, attempt=2)
        assert await c.answer(2) == (Status.OK, None)
        await until(lambda: RUNS["x"] >= 3)
        await asyncio.sleep(1)
        runs = RUNS["x"]
        c.call(2, REPLAY, number=row.number, attempt=3)
        await until(lambda: len(c.answers(2)) == 2)
        c.call(3, REPLAY, number=row.number)
        assert (await c.answer(3))[0] is Status.INVALID_COMMAND
        await asyncio.sleep(5)
        assert RUNS["x"] == runs
        assert await read(s) == ["x"]
        assert await dead_letters(s) == []
        serving = b if after_a_failover else a
        assert serving.shards[0].dead_letters == 0

    play(script, Post, tell_attempts_max=2)


def test_a_replay_that_fails_again_is_a_dead_letter_again() -> None:
    """M08: with all its attempts, under a new number."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        c.tell(1, "fail", item="x")
        await until(lambda: a.shards[0].dead_letters)
        (row,) = await dead_letters(s)
        await c.ask(2, REPLAY, number=row.number)
        await until(lambda: RUNS["x"] == 4)
        (again,) = await dead_letters(s)
        assert again.number > row.number
        assert (again.letter.client, again.letter.number, again.letter.attempts) == (7, 1, 2)

    play(script, Post, tell_attempts_max=2)


def test_a_letter_that_is_dropped_is_gone() -> None:
    """M08: and only that one, of that entity."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        c.tell(1, "refuse", item="x")
        c.tell(2, "refuse", item="y", prev=1)
        await until(lambda: a.shards[0].dead_letters == 2)
        first, second = await dead_letters(s)
        c.call(3, DROP, id="b", number=first.number)
        assert (await c.answer(3))[0] is Status.INVALID_COMMAND
        await c.ask(4, DROP, number=first.number)
        assert await dead_letters(s) == [second]
        c.call(5, DROP, number=first.number)
        assert (await c.answer(5))[0] is Status.INVALID_COMMAND
        assert b"has no dead letter" in c.heard[-1].payload  # type: ignore[union-attr] # an answer
        assert a.shards[0].dead_letters == 1

    play(script, Post)


def test_a_replay_during_a_release_goes_to_the_next_owner() -> None:
    """PR13, M08: it was looking for the letter when the release began; nothing may be staged any more."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = client_of(s, 7, a)
        c.tell(1, "fail_once", item="x")
        await until(lambda: a.shards[0].dead_letters)
        (row,) = await dead_letters(s)
        held = s.store_of(a).hold("read_dead_letters")
        c.call(2, REPLAY, number=row.number)
        await held.reached()
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        held.let_go()
        await until(lambda: c.told(OutOfOrder) == [2])
        await s.give(b, 0)
        d = client_of(s, 7, b, 2)
        await d.ask(2, REPLAY, number=row.number, attempt=2)
        await until(lambda: RUNS["x"] == 2)
        assert await read(s) == ["x"]

    play(script, Post, tell_attempts_max=1)


def test_a_replayed_tick_that_fails_again_holds_up_no_timer() -> None:
    """M10: ticks have no sender that would want an order."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_what", name="t", ms=0, what="fail", item="tick")
        await until(lambda: a.shards[0].dead_letters, 2000.0)
        (row,) = await dead_letters(s)
        await c.ask(2, REPLAY, number=row.number)
        resident = a.shards[0].residents["Post", "a"]
        await until(lambda: resident.backlog is not None and 0 in resident.backlog.parked)
        await c.ask(3, "schedule", name="u", ms=0, item="other")
        await until(lambda: RUNS["other"])
        assert resident.backlog is not None
        assert 0 in resident.backlog.parked

    play(script, Post, tell_attempts_max=2, tell_retry_first_s=1000.0, tell_retry_max_s=1000.0)


def test_a_replayed_tick_and_message_run_as_commands() -> None:
    """M08: whose due time and whose stream are long over."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_what", name="t", ms=0, what="fail_once", item="tick")
        await c.ask(2, "send_what", to="a", what="fail_once", item="message")
        await until(lambda: a.shards[0].dead_letters == 2)
        for number, row in enumerate(await dead_letters(s), 3):
            await c.ask(number, REPLAY, number=row.number)
        await until(lambda: RUNS["tick"] == RUNS["message"] == 2)
        assert sorted(await read(s)) == ["message", "tick"]
        assert await dead_letters(s) == []

    play(script, Post, tell_attempts_max=1)


def test_at_the_bound_of_dead_letters_what_fails_is_tried_on_until_there_is_room() -> None:
    """M08: nothing is dropped, nothing is buried above the bound; it goes on at the longest pause."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        c.tell(1, "refuse", item="x")
        c.tell(2, "refuse", item="y", prev=1)
        await until(lambda: a.shards[0].dead_letters == 2)
        c.tell(3, "fail", item="poison")
        other.tell(1, "refuse", item="z")
        await c.accepted(3)
        await other.accepted(1)
        await asyncio.sleep(300)
        assert 15 < RUNS["poison"] < 300
        assert 15 < RUNS["z"] < 300
        first, second = await dead_letters(s)
        await c.ask(4, DROP, id="a", number=first.number)
        await c.ask(5, DROP, id="a", number=second.number)
        await until(lambda: a.shards[0].dead_letters == 2)
        assert {row.letter.reason for row in await dead_letters(s)} == {"failed", "rejected"}

    play(script, Post, dead_letters_max=2, tell_attempts_max=3, tell_retry_max_s=10.0)


def test_a_command_id_that_comes_back_with_other_work_is_a_dead_letter() -> None:
    """M03, PR26, M08: both were accepted before the first had run: the other one is not forgotten."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        other, c = client_of(s, 8, a), client_of(s, 7, a)
        other.call(1, "put_slowly", item="slow", seconds=2.0)
        c.tell(1, "put", item="x", command_id="order")
        c.tell(2, "put", item="x", command_id="order", prev=1)
        c.tell(3, "put", item="other", command_id="order", prev=2)
        for number in (1, 2, 3):
            await c.accepted(number)
        await until(lambda: a.shards[0].dead_letters)
        assert await read(s) == ["slow", "x"]
        (row,) = await dead_letters(s)
        assert (row.letter.number, row.letter.reason) == (3, "invalid")
        assert "was used for other work" in row.letter.error

    play(script, Post)


def test_a_letter_that_cannot_be_read_is_refused() -> None:
    """J14, M08: with the reason, at once."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        c.tell(1, "refuse", item="x")
        await until(lambda: a.shards[0].dead_letters)
        (row,) = await dead_letters(s)

        async def damaged(*_: object) -> None:
            raise CorruptRecord("a row is damaged; restore this store from a backup")

        s.store_of(a).read_dead_letters = damaged
        c.call(2, REPLAY, number=row.number)
        assert (await c.answer(2))[0] is Status.UNAVAILABLE
        assert b"is damaged" in c.heard[-1].payload  # type: ignore[union-attr] # an answer
        del s.store_of(a).read_dead_letters
        await c.ask(3, DROP, number=row.number)

    play(script, Post)
