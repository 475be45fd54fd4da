"""Residents without commands, in order of their last use: pure bookkeeping."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from atoll.sharding.passivation import IdleList
from atoll.sharding.resident import Resident


def resident(name: str) -> Resident:
    nothing: Any = SimpleNamespace()
    return Resident(nothing, ("Box", name), nothing)


def taken(idle: IdleList, before: float, *, now: float = 100.0, committed: int = 0, at_most: int = 100) -> list[str]:
    return [resident.key[1] for resident in idle.take(before, now, committed, at_most)]


def used(idle: IdleList, *at: tuple[str, float]) -> dict[str, Resident]:
    residents: dict[str, Resident] = {}
    for name, now in at:
        residents[name] = residents.get(name) or resident(name)
        idle.used(residents[name], now)
    return residents


def test_who_was_idle_for_long_is_taken_oldest_first() -> None:
    """M13: not a moment before, and a later use puts it off."""
    idle = IdleList()
    used(idle, ("a", 0.0), ("b", 1.0), ("c", 2.0), ("a", 3.0))
    assert taken(idle, 0.9) == []
    assert taken(idle, 1.0) == ["b"]
    assert taken(idle, 3.0, at_most=1) == ["c"]
    assert taken(idle, 3.0) == ["a"]
    assert not idle.residents


def test_who_asked_to_leave_is_taken_at_once() -> None:
    idle = IdleList()
    residents = used(idle, ("a", 0.0), ("b", 1.0))
    residents["b"].leaving = True
    idle.used(residents["b"], 2.0)
    assert taken(idle, -1.0) == ["b"]


def test_who_shows_what_is_not_committed_stays_until_it_is() -> None:
    """PR10: an activation with staged effects is the only place that has them."""
    idle = IdleList()
    residents = used(idle, ("a", 0.0), ("b", 0.0))
    residents["a"].ticket = 6
    assert idle.oldest(50.0, 5) is None
    assert taken(idle, 50.0, committed=5) == []
    assert taken(idle, 50.0, committed=6) == ["a", "b"]


def test_who_is_at_work_is_nobody_to_take() -> None:
    """M13: it comes back to the list when it is idle again; what waits elsewhere for its turn counts as a use."""
    idle = IdleList()
    residents = used(idle, ("a", 0.0), ("b", 0.0), ("c", 0.0))
    residents["a"].scheduled = True
    residents["b"].with_backlog()
    assert taken(idle, 50.0) == ["c"]
    assert taken(idle, 99.0) == []
    residents["b"].backlog = None
    assert taken(idle, 99.0, now=101.0) == []
    assert taken(idle, 100.0, now=101.0) == ["b"]
    idle.used(residents["a"], 102.0)
    residents["a"].scheduled = False
    assert taken(idle, 102.0) == ["a"]
