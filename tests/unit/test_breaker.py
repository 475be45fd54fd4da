"""The circuit breaker: when it opens, how long it pauses, and whose word counts."""

from __future__ import annotations

import asyncio

import pytest
from simulator.simulation import Simulation

import atoll
from atoll.actors.breaker import Breaker, BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def fail(breaker: Breaker, now: float, times: int = 1, luck: float = 1.0) -> None:
    for _ in range(times):
        call = breaker.enter(now)
        assert call is not None
        breaker.failed(call, now, luck)


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    breaker = Breaker(3, 1.0, 60.0)
    fail(breaker, 0.0, 2)
    call = breaker.enter(0.0)
    assert call is not None
    breaker.succeeded(call)
    fail(breaker, 0.0, 2)
    assert breaker.state is CLOSED
    fail(breaker, 0.0)
    assert breaker.state is OPEN
    assert breaker.enter(0.99) is None
    assert breaker.retry_after_s(0.75) == 0.25


def test_one_trial_at_a_time_decides() -> None:
    breaker = Breaker(1, 1.0, 60.0)
    fail(breaker, 0.0)
    trial = breaker.enter(1.0)
    assert trial is not None
    assert (breaker.state, breaker.enter(1.0)) == (HALF_OPEN, None)
    breaker.succeeded(trial)
    assert breaker.state is CLOSED
    assert breaker.enter(1.0) is not None


def test_each_failed_trial_doubles_the_pause_up_to_its_bound_and_a_success_forgets_them() -> None:
    breaker, now, pauses = Breaker(1, 1.0, 5.0), 0.0, []
    for _ in range(5):
        fail(breaker, now)
        pauses.append(breaker.retry_after_s(now))
        now += pauses[-1]
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    trial = breaker.enter(now)
    assert trial is not None
    breaker.succeeded(trial)
    fail(breaker, now)
    assert breaker.retry_after_s(now) == 1.0


@pytest.mark.parametrize(("luck", "pause"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_the_pause_is_drawn_from_its_upper_half(luck: float, pause: float) -> None:
    breaker = Breaker(1, 1.0, 5.0)
    fail(breaker, 0.0, luck=luck)
    assert breaker.retry_after_s(0.0) == pause


def test_what_began_before_it_opened_decides_nothing_any_more() -> None:
    """Also not the trial that is under way meanwhile."""
    breaker = Breaker(1, 1.0, 60.0)
    old = [breaker.enter(0.0) for _ in range(3)]
    assert None not in old
    fail(breaker, 0.0)
    trial = breaker.enter(1.0)
    assert trial is not None
    breaker.succeeded(old[0])  # type: ignore[arg-type] # seen above
    breaker.failed(old[1], 1.0, 1.0)  # type: ignore[arg-type] # seen above
    breaker.abandoned(old[2], 1.0)  # type: ignore[arg-type] # seen above
    assert breaker.state is HALF_OPEN
    breaker.succeeded(trial)
    assert breaker.state is CLOSED


def test_a_trial_that_was_given_up_lets_the_next_one_try_at_once() -> None:
    breaker = Breaker(1, 1.0, 60.0)
    fail(breaker, 0.0)
    trial = breaker.enter(1.0)
    assert trial is not None
    breaker.abandoned(trial, 1.5)
    assert breaker.state is OPEN
    assert breaker.enter(1.5) is not None


@pytest.mark.parametrize(("failures", "first", "most"), [(0, 1.0, 2.0), (1, 0.0, 2.0), (1, 3.0, 2.0)])
def test_bounds_that_make_no_sense_are_refused(failures: int, first: float, most: float) -> None:
    with pytest.raises(ValueError, match="circuit breaker"):
        Breaker(failures, first, most)


# ---- for handlers


class Service:
    """Outside; down or not."""

    def __init__(self) -> None:
        self.down = True
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        await asyncio.sleep(0.001)
        if self.down:
            raise ConnectionError("down")
        return "done"


def test_a_service_that_is_down_is_tried_now_and_then_and_used_again_when_it_is_back() -> None:
    async def story() -> None:
        breaker = atoll.CircuitBreaker(failures=3, pause_first_s=1.0, pause_max_s=4.0, world=simulation.world("host"))
        service = Service()
        failed = 0
        refused: list[atoll.CircuitOpen] = []
        for _ in range(600):
            try:
                async with breaker:
                    await service()
            except ConnectionError:
                failed += 1
            except atoll.CircuitOpen as error:
                refused.append(error)
            await asyncio.sleep(0.1)
        assert failed == service.calls
        assert 3 + 60 / 5 <= failed <= 3 + 60 / 1.5
        assert len(refused) == 600 - failed
        assert all(0 <= error.retry_after_s <= 4.0 for error in refused)
        service.down = False
        await asyncio.sleep(4.0)
        async with breaker:
            assert await service() == "done"
        assert breaker.state is CLOSED

    with Simulation("breaker") as simulation:
        simulation.run(story())


def test_only_what_counts_is_a_failure() -> None:
    """An answer that says no is an answer. A call that is cancelled from outside proves nothing, a time-out inside does."""

    async def story() -> None:
        world = simulation.world("host")
        breaker = atoll.CircuitBreaker(failures=1, counts=(ConnectionError, TimeoutError), world=world)
        with pytest.raises(KeyError):
            async with breaker:
                raise KeyError
        task = asyncio.ensure_future(hang(breaker))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert breaker.state is CLOSED
        with pytest.raises(TimeoutError):
            async with breaker, asyncio.timeout(1):
                await asyncio.sleep(2)
        assert breaker.state is OPEN
        assert breaker._calls == {}

    async def hang(breaker: atoll.CircuitBreaker) -> None:
        async with breaker:
            await asyncio.sleep(60)

    with Simulation("breaker") as simulation:
        simulation.run(story())
