"""`atoll.testing`: what users test their entities with behaves as a host does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import atoll

EntityKit, Sent, Timer = atoll.testing.EntityKit, atoll.testing.Sent, atoll.testing.Timer
HOUR = timedelta(hours=1)


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


class Clerk(atoll.Entity):
    """Sends and schedules."""

    ticks: list[str] = atoll.field(default_factory=list)
    state: str = "well"

    @atoll.command
    def pay(self, other: str, amount: int, *, fail: bool = False) -> None:
        self.context.send(self.context.entity(Account, other).deposit, amount)
        self.context.schedule(f"remind {other}", HOUR, self.tick, other)
        if fail:
            raise ZeroDivisionError

    @atoll.command
    def set_timer(self, name: str, after_s: int, every_s: int = 0, catch_up: bool = False, then: str = "") -> None:
        after = timedelta(seconds=after_s)
        if every_s:
            every = timedelta(seconds=every_s)
            missed = "catch_up" if catch_up else "coalesce"
            self.context.schedule(name, after, self.tick, name, then, every=every, missed=missed)
        else:
            self.context.schedule(name, after, self.tick, name, then)

    @atoll.command
    async def tick(self, name: str, then: str = "") -> None:
        """Writes down when it ran, how many seconds after its due time, and then does what its name says."""
        assert self.context.due is not None
        late = self.context.now - self.context.due
        self.ticks.append(f"{name} +{late.total_seconds():g}")
        await asyncio.sleep(0)
        if self.state == "broken":
            raise ZeroDivisionError
        if self.state == "closed":
            raise atoll.Rejected("closed")
        match then.split():
            case ["cancel", other]:
                self.context.cancel(other)
            case ["again", seconds]:
                self.context.schedule(name, timedelta(seconds=int(seconds)), self.tick, name)
            case ["delete"]:
                self.context.delete()
            case ["spin"]:
                self.context.schedule(name, timedelta(), self.tick, name, then)

    @atoll.command
    def become(self, state: str) -> None:
        self.state = state

    @atoll.command
    def cancel(self, name: str) -> None:
        self.context.cancel(name)

    @atoll.command
    def close(self) -> None:
        self.context.delete()


def after(kit: Any, seconds: float) -> datetime:
    return kit.now + timedelta(seconds=seconds)


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


async def test_what_it_sends_goes_nowhere_and_is_kept_in_order() -> None:
    kit = EntityKit(Clerk)
    await kit.ref.pay("bob", 5)
    await kit.ref.pay.tell("cid", 6)
    assert kit.sent == [
        Sent("Account", "bob", "deposit", {"amount": 5}),
        Sent("Account", "cid", "deposit", {"amount": 6}),
    ]
    assert kit.version == 0


async def test_a_failed_command_sends_and_schedules_nothing() -> None:
    """M09; and a repeat under one command ID sends once (M03)."""
    kit = EntityKit(Clerk)
    with pytest.raises(atoll.HandlerFailed):
        await kit.ref.pay("bob", 5, fail=True)
    assert (kit.sent, kit.timers) == ([], {})
    for _ in range(2):
        await kit.ref.pay.using(command_id="order-17")("bob", 5)
    assert len(kit.sent) == 1


async def test_timers_stand_by_name_and_survive_a_restart() -> None:
    """J15: a timer that was set is still there after the entity left memory."""
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("a", 60)
    await kit.ref.set_timer("b", 60, 10, True)
    await kit.ref.set_timer("b", 90, 10)
    await kit.restart()
    arguments = {"name": "b", "then": ""}
    assert kit.timers == {
        "a": Timer(after(kit, 60), "tick", {"name": "a", "then": ""}),
        "b": Timer(after(kit, 90), "tick", arguments, every=timedelta(seconds=10)),
    }
    await kit.ref.cancel("a")
    await kit.ref.cancel("unknown")
    assert list(kit.timers) == ["b"]


async def test_moving_the_clock_fires_nothing_and_running_fires_what_is_due_in_order() -> None:
    """M10: each once, with its own time at hand."""
    kit = EntityKit(Clerk)
    for name, seconds in (("late", 30), ("later", 3600), ("early", 10), ("b", 20), ("a", 20)):
        await kit.ref.set_timer(name, seconds)
    await kit.run_timers()
    kit.now += timedelta(seconds=30)
    assert kit.state["ticks"] == []
    await kit.run_timers()
    await kit.run_timers()
    assert kit.state["ticks"] == ["early +20", "a +10", "b +10", "late +0"]
    assert list(kit.timers) == ["later"]


@pytest.mark.parametrize(
    ("catch_up", "ticks"),
    [(False, ["it +35"]), (True, ["it +35", "it +25", "it +15", "it +5"])],
)
async def test_missed_ticks_run_as_one_or_each(catch_up: bool, ticks: list[str]) -> None:
    """M10: and the timer keeps to its grid."""
    kit = EntityKit(Clerk)
    start = kit.now
    await kit.ref.set_timer("it", 10, 10, catch_up)
    kit.now += timedelta(seconds=45)
    await kit.run_timers()
    assert kit.state["ticks"] == ticks
    assert kit.timers["it"].due == start + timedelta(seconds=50)
    kit.now = start  # the clock steps back: nothing is due, and nothing runs twice
    await kit.run_timers()
    assert kit.state["ticks"] == ticks


async def test_backlogs_of_several_timers_run_in_order_of_their_times() -> None:
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("ten", 10, 10, True)
    await kit.ref.set_timer("fifteen", 15)
    kit.now += timedelta(seconds=20)
    await kit.run_timers()
    assert kit.state["ticks"] == ["ten +10", "fifteen +5", "ten +0"]


async def test_a_failed_tick_is_told_stays_due_and_runs_again() -> None:
    """M09, M10: it leaves no trace, holds up no other timer, and succeeds once."""
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("a", 10)
    await kit.ref.set_timer("b", 20, 10)
    await kit.ref.become("broken")
    kit.now += timedelta(seconds=25)
    standing = kit.timers
    await kit.run_timers()
    assert [type(each) for each in kit.failures] == [atoll.HandlerFailed] * 2
    assert (kit.state["ticks"], kit.timers) == ([], standing)
    await kit.ref.become("well")
    await kit.run_timers()
    assert kit.state["ticks"] == ["a +15", "b +5"]
    assert kit.timers == {"b": Timer(after(kit, 5), "tick", {"name": "b", "then": ""}, timedelta(seconds=10))}


async def test_a_refused_tick_is_told_and_over() -> None:
    """Repeating it would not help, and a timer that repeats goes on with its next one."""
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("a", 10)
    await kit.ref.set_timer("b", 10, 10, True)
    await kit.ref.become("closed")
    kit.now += timedelta(seconds=25)
    await kit.run_timers()
    assert [str(each) for each in kit.failures] == ["closed"] * 3
    assert kit.timers == {
        "b": Timer(after(kit, 5), "tick", {"name": "b", "then": ""}, timedelta(seconds=10), "catch_up")
    }


async def test_a_cancel_or_a_new_schedule_wins_over_a_tick_that_is_due() -> None:
    """M10"""
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("first", 10, then="cancel second")
    await kit.ref.set_timer("second", 11)
    await kit.ref.set_timer("own", 12, 5, then="cancel own")
    await kit.ref.set_timer("anew", 13, 5, then="again 60")
    kit.now += timedelta(seconds=20)
    await kit.run_timers()
    assert kit.state["ticks"] == ["first +10", "own +8", "anew +7"]
    assert kit.timers == {"anew": Timer(after(kit, 60), "tick", {"name": "anew"})}


async def test_a_deletion_takes_all_timers() -> None:
    """M20: also when a tick does it, and then that tick's own timer does not repeat."""
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("a", 10)
    await kit.ref.close()
    assert kit.timers == {}
    await kit.ref.set_timer("b", 10, 10, then="delete")
    await kit.ref.set_timer("c", 60)
    kit.now += timedelta(seconds=10)
    await kit.run_timers()
    assert (kit.timers, kit.state["ticks"]) == ({}, [])


async def test_a_timer_that_sets_itself_for_now_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never end in a cluster either, there paced."""
    monkeypatch.setattr(atoll.testing, "TICKS_MAX", 50)
    kit = EntityKit(Clerk)
    await kit.ref.set_timer("it", 0, then="spin")
    with pytest.raises(RuntimeError, match=r"50 ticks, and 'it' is still due: .* sets itself for now"):
        await kit.run_timers()
    assert len(kit.state["ticks"]) == 50


async def test_the_clock_in_the_kit_has_milliseconds_and_meets_a_time_between_two() -> None:
    """What is set for a time is due when kit.now is that time."""

    class Punctual(atoll.Entity):
        runs: int = 0

        @atoll.command
        def at(self, when: datetime) -> None:
            self.context.schedule("it", when, self.run)

        @atoll.command
        def run(self) -> None:
            self.runs += 1

    kit = EntityKit(Punctual)
    when = kit.now + timedelta(microseconds=400)
    await kit.ref.at(when)
    await kit.run_timers()
    assert kit.state == {"runs": 0}
    kit.now = when
    await kit.run_timers()
    assert kit.state == {"runs": 1}
