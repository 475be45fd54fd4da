"""Commands that are taken many in one turn: each exactly once, each with its own result, all in one row of the log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from scenario import RawClient, Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.persistence.records import decode_batch
from atoll.sharding.host import Host


class Tally(atoll.Entity):
    batches: ClassVar[list[list[int]]] = []
    """The lists that came, on all hosts together."""
    total: int = 0

    @atoll.batched
    def add(self, amounts: list[int]) -> list[int]:
        self.batches.append(amounts)
        results: list[Any] = []
        for amount in amounts:
            if amount == 666:
                raise RuntimeError("on purpose")
            if amount < 0:
                results.append(atoll.Rejected(f"{amount} is below 0"))
            else:
                self.total += amount
                results.append(self.total)
        return results

    @atoll.command
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @atoll.command
    def other(self) -> int:
        return self.total

    @atoll.query
    def read(self) -> int:
        return self.total


@dataclass(frozen=True)
class Added:
    amount: int


class Journal(atoll.EventSourced):
    total: int = 0

    @atoll.batched
    def add(self, amounts: list[int]) -> list[int]:
        totals = []
        for amount in amounts:
            self.emit(Added(amount))
            totals.append(self.total)
        return totals

    @atoll.command
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @atoll.apply
    def _added(self, event: Added) -> None:
        self.total += event.amount


@pytest.fixture(autouse=True)
def _no_batches() -> None:
    Tally.batches.clear()


async def gathered(s: Scenario, host: Host, kind: type[atoll.Entity] = Tally, *clients: int) -> list[RawClient]:
    """Clients of an entity that is in a turn for a second: what they send now waits together."""
    found = [s.raw_client(client, host, kind=kind) for client in clients or (7,)]
    found[0].call(1, "wait", seconds=1.0)
    await until(lambda: host.shards[0].residents[kind.__name__, "a"].running)
    return found


# ---- together


@pytest.mark.parametrize("kind", [Tally, Journal])
def test_what_waits_together_is_one_turn_and_each_caller_gets_its_own_result(kind: type[atoll.Entity]) -> None:
    """M01: in order, from several clients, asks and tells; the state is written once."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c, d = await gathered(s, host, kind, 7, 8)
        for number in range(2, 8):
            c.call(number, "add", prev=number - 1, amounts=number)
        d.call(1, "add", amounts=100)
        d.tell(2, "add", prev=1, amounts=1000)
        assert [(await c.answer(number))[1] for number in range(2, 8)] == [2, 5, 9, 14, 20, 27]
        assert await d.answer(1) == (Status.OK, 127)
        assert await d.answer(2) == (Status.OK, None)
        records = await s.records(host)
        assert [bool(record.state or record.events) for record in records[-8:]] == [True] + [False] * 7
        newest = (await s.log(host))[-1]
        assert len(decode_batch(newest.content, host.incarnation, newest.n)) == 8, "one row"

    play(script, kind)


def test_only_neighbours_of_the_same_handler_come_together_and_no_more_than_the_bound() -> None:
    """M01: nothing overtakes."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        for number in range(2, 9):
            c.call(
                number, "other" if number == 5 else "add", prev=number - 1, **({} if number == 5 else {"amounts": 1})
            )
        assert [(await c.answer(number))[1] for number in range(2, 9)] == [1, 2, 3, 3, 4, 5, 6]
        assert Tally.batches == [[1, 1], [1], [1, 1], [1]]

    play(script, Tally, batched_max=2)


def test_under_an_id_or_owed_a_command_runs_alone() -> None:
    """M03, M05: its end is more than an answer."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        c.call(2, "add", prev=1, amounts=1)
        c.call(3, "add", prev=2, amounts=1, command_id="order-3")
        c.call(4, "add", prev=3, amounts=1)
        c.call(5, "add", prev=4, amounts=1)
        assert await c.answer(5) == (Status.OK, 4)
        assert Tally.batches == [[1], [1], [1, 1]]
        c.call(6, "add", amounts=1, command_id="order-3")
        assert await c.answer(6) == (Status.OK, 2)

    play(script, Tally)


# ---- apart


def test_a_refusal_is_its_callers_own() -> None:
    """The others of the batch have their effect; a refused tell is a dead letter, as ever."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        for number, amount in ((2, 1), (3, -5), (4, 10)):
            c.call(number, "add", prev=number - 1, amounts=amount)
        assert [(await c.answer(number))[0] for number in (2, 3, 4)] == [Status.OK, Status.REJECTED, Status.OK]
        assert await c.ask(5, "read") == 11
        assert Tally.batches == [[1, -5, 10]]
        c.call(6, "wait", seconds=0.1)
        c.call(7, "add", prev=6, amounts=1)
        c.tell(8, "add", prev=7, amounts=-1)
        assert await c.answer(7) == (Status.OK, 12)
        await c.accepted(8)
        assert host.shards[0].dead_letters == 1
        assert await c.ask(9, "read") == 12

    play(script, Tally)


@pytest.mark.parametrize("wrong", [666, "six"], ids=["raises", "does not fit"])
def test_the_mistake_of_one_is_not_that_of_the_others(wrong: object) -> None:
    """M09: a batch that fails leaves no trace, and each of it runs alone."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        for number, amount in ((2, 1), (3, wrong), (4, 10)):
            c.call(number, "add", prev=number - 1, amounts=amount)
        ends = [(await c.answer(number))[0] for number in (2, 3, 4)]
        assert ends[0] is ends[2] is Status.OK
        assert ends[1] in (Status.HANDLER_FAILED, Status.INVALID_COMMAND)
        assert await c.ask(5, "read") == 11

    play(script, Tally)


def test_a_deadline_that_passed_and_a_number_that_was_given_up_are_left_out() -> None:
    """M12, PR26."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        c.call(2, "add", prev=1, amounts=1)
        c.call(3, "add", prev=2, amounts=10, remaining_ms=500)
        c.call(4, "add", prev=3, amounts=100)
        assert (await c.answer(3))[0] is Status.DEADLINE_EXCEEDED
        assert await c.answer(4) == (Status.OK, 101)

    play(script, Tally)


# ---- exactly once


@pytest.mark.parametrize("batch_max", [2, 1000], ids=["small appends", "large appends"])
def test_a_crash_finds_all_of_a_batch_or_nothing(batch_max: int) -> None:
    """M02, M06: the state that has seen a command stands in one row with its reply, however small appends are: what is
    sent again to the next owner has one effect, and the same reply."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        (c,) = await gathered(s, a)
        held = s.store_of(a).hold_reply("append")
        for number in range(2, 12):
            c.call(number, "add", prev=number - 1, amounts=1)
        await held.reached()
        await s.fail_over(a, b, 0)
        again = s.raw_client(7, b, 2, kind=Tally)
        for number in range(2, 12):
            again.call(number, "add", prev=number - 1 if number > 2 else 0, attempt=2, amounts=1)
        values = [(await again.answer(number))[1] for number in range(2, 12)]
        assert values == list(range(1, 11))
        assert await again.ask(20, "read") == 10

    play(script, Tally, batch_commands_max=batch_max)


def test_a_batch_that_changes_nothing_costs_no_record() -> None:
    """No commit, no cost."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        (c,) = await gathered(s, host)
        for number in range(2, 8):
            c.call(number, "add", prev=number - 1, amounts=0)
        assert [(await c.answer(number))[1] for number in range(2, 8)] == [0] * 6
        assert await s.records(host) == []

    play(script, Tally)


# ---- definition


def test_what_cannot_be_a_batch_is_refused_at_definition() -> None:
    with pytest.raises(TypeError, match="plain def with one parameter"):

        class Two(atoll.Entity):
            @atoll.batched  # type: ignore[arg-type] # what is tested
            def add(self, a: list[int], b: list[int]) -> list[int]:
                return a

    with pytest.raises(TypeError, match="plain def"):

        class Waits(atoll.Entity):
            @atoll.batched  # type: ignore[arg-type] # what is tested
            async def add(self, a: list[int]) -> list[int]:
                return a

    with pytest.raises(TypeError, match="takes a list and returns a list, not int"):

        class One(atoll.Entity):
            @atoll.batched  # type: ignore[arg-type] # what is tested
            def add(self, a: int) -> list[int]:
                return [a]


async def test_one_that_returns_too_few_fails_alone() -> None:
    class Short(atoll.Entity):
        @atoll.batched
        def add(self, a: list[int]) -> list[int]:
            return []

    async with atoll.local(atoll.App("short", entities=[Short])) as cluster:
        with pytest.raises(atoll.HandlerFailed, match="a result for each"):
            await cluster.entity(Short, "a").add(1)
