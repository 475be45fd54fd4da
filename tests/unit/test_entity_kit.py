"""`atoll.testing`: what users test their entities with behaves as a host does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import atoll

EntityKit = atoll.testing.EntityKit


@dataclass(frozen=True)
class Deposited:
    amount: int


class TooMuch(atoll.Rejected):
    balance: int


class Account(atoll.EventSourced):
    balance: int = 0
    opened: datetime | None = None
    log: list[int] = atoll.field(default_factory=list)

    async def on_activate(self) -> None:
        self._lives = self.context.resources if self.context.resources is not None else []
        self._lives.append("up")

    async def on_passivate(self) -> None:
        self._lives.append("down")

    @atoll.command
    def deposit(self, amount: int) -> int:
        self.emit(Deposited(amount))
        return self.balance

    @atoll.command
    async def withdraw(self, amount: int) -> int:
        await asyncio.sleep(0)
        if amount > self.balance:
            raise TooMuch(balance=self.balance)
        self.emit(Deposited(-amount))
        return self.balance

    @atoll.command
    def crash(self) -> None:
        self.emit(Deposited(1))
        raise ZeroDivisionError

    @atoll.command
    def sneak(self) -> None:
        self.log.append(1)

    @atoll.command
    def close(self) -> None:
        self.context.delete()

    @atoll.command
    def leave(self) -> None:
        self.context.passivate()

    @atoll.query
    def current(self) -> int:
        return self.balance

    @atoll.query
    def clock(self) -> list[datetime]:
        return [self.context.now, self.context.deadline]

    @atoll.apply
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class Tally(atoll.Entity):
    pair: Any = ()
    counts: dict[str, int] = atoll.field(default_factory=dict)

    @atoll.command
    def set_pair(self) -> str:
        self.pair = (1, 2)
        return type(self.pair).__name__

    @atoll.query
    def pair_type(self) -> str:
        return type(self.pair).__name__


async def test_commands_in_events_and_state_out() -> None:
    kit = EntityKit(Account, "alice")
    assert await kit.ref.deposit(10) == 10
    assert await kit.ref.withdraw(4) == 6
    assert await kit.ref.current() == 6
    assert kit.events == [Deposited(10), Deposited(-4)]
    assert kit.state == {"balance": 6, "opened": None, "log": []}
    assert kit.version == 2


async def test_failures_arrive_as_they_do_at_a_caller_and_leave_no_trace() -> None:
    """M09, M04: the same command ID may be tried again after a refusal."""
    kit = EntityKit(Account)
    with pytest.raises(TooMuch) as caught:
        await kit.ref.withdraw.using(command_id="w")(5)
    assert caught.value.balance == 0
    with pytest.raises(atoll.HandlerFailed, match=r"Account\.crash raised ZeroDivisionError"):
        await kit.ref.crash()
    with pytest.raises(atoll.InvalidCommand, match="argument amount"):
        await kit.ref.deposit("ten")
    assert (kit.events, kit.version) == ([], 0)
    await kit.ref.deposit(5)
    assert await kit.ref.withdraw.using(command_id="w")(5) == 0


async def test_one_command_id_runs_once() -> None:
    """M03: also when it comes twice at once; other work under it is refused (PR26)."""
    kit = EntityKit(Account)
    deposit = kit.ref.deposit.using(command_id="order-17")
    assert await asyncio.gather(deposit(5), deposit(5)) == [5, 5]
    await kit.restart()
    assert await deposit(5) == 5
    assert kit.events == [Deposited(5)]
    with pytest.raises(atoll.InvalidCommand, match="used for other work"):
        await deposit(6)


async def test_turns_do_not_overlap() -> None:
    kit = EntityKit(Account)
    await kit.ref.deposit(10)
    results = await asyncio.gather(*(kit.ref.withdraw(1) for _ in range(10)))
    assert results == list(range(9, -1, -1))


async def test_a_tell_hears_of_no_failure_but_the_kit_keeps_it() -> None:
    kit = EntityKit(Account)
    await kit.ref.deposit.tell(5)
    await kit.ref.crash.tell()
    await kit.ref.withdraw.tell(50)
    assert [type(each) for each in kit.failures] == [atoll.HandlerFailed, TooMuch]
    assert kit.state["balance"] == 5


async def test_a_restart_recovers_from_what_is_stored_with_hooks() -> None:
    lives: list[str] = []
    kit = EntityKit(Account, resources=lives, settings={"snapshot_every": 2})
    assert not kit.active
    for amount in (1, 2, 3):
        await kit.ref.deposit(amount)
    await kit.restart()
    assert await kit.ref.current() == 6
    assert lives == ["up", "down", "up"]
    await kit.ref.leave()
    assert not kit.active
    assert lives[-1] == "down"
    assert kit.state["balance"] == 6


async def test_time_moves_only_by_the_test() -> None:
    kit = EntityKit(Account)
    assert await kit.ref.clock() == await kit.ref.clock()
    kit.now = datetime(2024, 5, 1, 12, tzinfo=UTC)
    kit.now += timedelta(hours=1)
    now, deadline = await kit.ref.clock.using(timeout=2.5)()
    assert (now, deadline - now) == (datetime(2024, 5, 1, 13, tzinfo=UTC), timedelta(seconds=2.5))
    with pytest.raises(ValueError, match="aware"):
        kit.now = datetime(2024, 5, 1)  # noqa: DTZ001 - the mistake


async def test_state_really_goes_through_its_encoded_form_between_commands() -> None:
    """What would change by a recovery changes at once: here a tuple in a field of any type becomes a list."""
    kit = EntityKit(Tally)
    assert await kit.ref.set_pair() == "tuple"
    assert await kit.ref.pair_type() == "list"


async def test_a_change_outside_of_apply_fails_the_test() -> None:
    """A guard stops `self.log = ...`; a change in place it cannot see, and the kit can."""
    kit = EntityKit(Account)
    with pytest.raises(AssertionError, match=r"Account.log is \[1\] in memory and \[\] after recovery"):
        await kit.ref.sneak()


async def test_deletion_begins_anew_and_keeps_history_and_version() -> None:
    """M20"""
    kit = EntityKit(Account)
    await kit.ref.deposit(5)
    await kit.ref.close()
    assert (kit.state["balance"], kit.version) == (0, 2)
    await kit.restart()
    assert await kit.ref.deposit(1) == 1
    assert kit.events == [Deposited(5), Deposited(1)]


async def test_limits_are_those_of_a_host() -> None:
    """J11"""
    kit = EntityKit(Account, settings={"arguments_bytes_max": 4})
    with pytest.raises(atoll.InvalidCommand, match="arguments_bytes_max"):
        await kit.ref.deposit(5)
    with pytest.raises(ValueError, match="settings"):
        EntityKit(Account, settings={"no_such": 1})
