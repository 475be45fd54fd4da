"""Due times: which millisecond is meant, and when a timer is due again after its tick."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.actors.stored import StoredTimer
from atoll.actors.timers import due_ms_of, every_ms_of, next_tick

MINUTE = 60_000
NOW = 1_600_000_000_000


def timer(due_ms: int = NOW, every_ms: int = MINUTE, catch_up: bool = False) -> StoredTimer:
    return StoredTimer("it", due_ms, "tick", b"\x80", every_ms, catch_up, set_at=7, attempts=3)


def due_after(it: StoredTimer, now_ms: int) -> int:
    following = next_tick(it, now_ms)
    assert following is not None
    return following.due_ms


# ---- due again


def test_a_timer_that_does_not_repeat_is_over_after_its_tick() -> None:
    """M10: it fires once per schedule."""
    assert next_tick(timer(every_ms=0), NOW) is None
    assert next_tick(timer(every_ms=0, catch_up=True), NOW + 10 * MINUTE) is None


def test_the_next_tick_is_the_same_timer_with_no_attempt_made() -> None:
    following = next_tick(timer(), NOW + 5)
    assert following == StoredTimer("it", NOW + MINUTE, "tick", b"\x80", MINUTE, False, set_at=7, attempts=0)


@pytest.mark.parametrize(
    ("late_ms", "next_ms"),
    [
        (0, MINUTE),
        (MINUTE - 1, MINUTE),
        (MINUTE, 2 * MINUTE),  # the tick that is due this very moment ran with this one
        (MINUTE + 1, 2 * MINUTE),
        (10 * MINUTE - 1, 10 * MINUTE),
    ],
)
def test_missed_ticks_run_as_one_and_the_grid_stays(late_ms: int, next_ms: int) -> None:
    assert due_after(timer(), NOW + late_ms) == NOW + next_ms


@pytest.mark.parametrize("late_ms", [0, MINUTE, 10 * MINUTE])
def test_catching_up_leaves_no_tick_out(late_ms: int) -> None:
    assert due_after(timer(catch_up=True), NOW + late_ms) == NOW + MINUTE


@pytest.mark.parametrize("catch_up", [False, True])
@pytest.mark.parametrize("back_ms", [1, MINUTE, 60 * MINUTE])
def test_a_clock_that_stepped_back_doubles_no_tick(back_ms: int, catch_up: bool) -> None:
    """R07: the tick ran at what is now in the future; the next one comes after it all the same."""
    assert due_after(timer(catch_up=catch_up), NOW - back_ms) == NOW + MINUTE


@given(
    due_ms=st.integers(0, 10**13),
    every_ms=st.integers(1, 10**11),
    late_ms=st.integers(-(10**10), 10**12),
    catch_up=st.booleans(),
)
def test_the_next_tick_is_the_first_that_may_run(due_ms: int, every_ms: int, late_ms: int, catch_up: bool) -> None:
    """On the grid, later than the last, later than now when missed ones coalesce; and no earlier point is all that."""
    now_ms = due_ms + late_ms
    following = due_after(timer(due_ms, every_ms, catch_up), now_ms)
    assert (following - due_ms) % every_ms == 0
    assert following > due_ms
    if catch_up:
        assert following == due_ms + every_ms
    else:
        assert following > now_ms
        assert following == due_ms + every_ms or following - every_ms <= now_ms


# ---- when, and how often


def test_a_delay_counts_from_now_and_never_comes_early() -> None:
    assert due_ms_of(timedelta(), NOW) == NOW
    assert due_ms_of(timedelta(seconds=1.5), NOW) == NOW + 1500
    assert due_ms_of(timedelta(microseconds=1), NOW) == NOW + 1


def test_a_time_is_what_it_is_in_any_zone_also_when_it_has_passed() -> None:
    noon = datetime(2020, 9, 13, 12, tzinfo=UTC)
    expected = int(noon.timestamp() * 1000)
    assert due_ms_of(noon, NOW) == due_ms_of(noon.astimezone(timezone(timedelta(hours=-7))), NOW) == expected
    assert due_ms_of(noon + timedelta(microseconds=1), NOW) == expected + 1
    assert due_ms_of(noon, NOW * 2) == expected


@pytest.mark.parametrize(
    ("when", "error", "said"),
    [
        (5, TypeError, "timedelta from now or for an aware datetime"),
        ("soon", TypeError, "timedelta"),
        (None, TypeError, "timedelta"),
        (timedelta(microseconds=-1), ValueError, "for later"),
        (datetime(2020, 1, 1), ValueError, "naive"),  # noqa: DTZ001 - the mistake
        (datetime(1969, 12, 31, tzinfo=UTC), ValueError, "1970 to 9999"),
        (timedelta.max, ValueError, "1970 to 9999"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), ValueError, "1970 to 9999"),
    ],
)
def test_what_is_no_time_for_a_timer_is_refused(when: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        due_ms_of(when, NOW)


def test_an_interval_has_a_shortest_length() -> None:
    assert every_ms_of(timedelta(milliseconds=10), 10) == 10
    assert every_ms_of(timedelta(milliseconds=10, microseconds=1), 10) == 11
    for every in (timedelta(milliseconds=9), timedelta(), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match=r"timer_every_ms_min \(10 ms\)"):
            every_ms_of(every, 10)
    with pytest.raises(TypeError, match="timedelta"):
        every_ms_of(5, 10)
