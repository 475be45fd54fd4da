"""Which entities leave memory: pure bookkeeping in order of last use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from atoll.sharding.passivation import IdleList
from atoll.sharding.resident import Resident


def resident(name: str) -> Resident:
    nothing: Any = SimpleNamespace()
    return Resident(nothing, ("Box", name), nothing)


def names(residents: list[Resident]) -> list[str]:
    return [resident.key[1] for resident in residents]


def used(idle: IdleList, *at: tuple[str, float]) -> dict[str, Resident]:
    residents = {}
    for name, now in at:
        residents[name] = residents.get(name) or resident(name)
        idle.used(residents[name], now)
    return residents


def test_who_was_idle_for_long_is_due_oldest_first() -> None:
    """M13: not a moment before, and a later use puts it off."""
    idle = IdleList(10.0, 100)
    used(idle, ("a", 0.0), ("b", 1.0), ("c", 2.0), ("a", 3.0))
    assert names(idle.due(10.9, 0, 100)) == []
    assert names(idle.due(11.0, 0, 100)) == ["b"]
    assert names(idle.due(13.0, 0, 100)) == ["b", "c", "a"]
    assert names(idle.due(13.0, 0, 2)) == ["b", "c"]


def test_above_the_bound_the_least_recently_used_are_due() -> None:
    idle = IdleList(10.0, 2)
    used(idle, ("a", 0.0), ("b", 1.0), ("c", 2.0), ("d", 3.0))
    assert names(idle.due(3.0, 0, 100)) == ["a", "b"]


def test_who_asked_to_leave_is_due_at_once() -> None:
    idle = IdleList(10.0, 100)
    residents = used(idle, ("a", 0.0), ("b", 1.0))
    residents["b"].leaving = True
    idle.used(residents["b"], 2.0)
    assert names(idle.due(2.0, 0, 100)) == ["b"]


def test_who_is_busy_or_shows_what_is_not_committed_stays() -> None:
    """PR10: an activation with staged effects is the only place that has them."""
    idle = IdleList(10.0, 100)
    residents = used(idle, ("a", 0.0), ("b", 0.0), ("c", 0.0))
    residents["a"].scheduled = True
    residents["b"].ticket = 6
    assert names(idle.due(50.0, 5, 100)) == ["c"]
    assert names(idle.due(50.0, 6, 100)) == ["b", "c"]
    idle.forget(residents["c"])
    idle.forget(residents["c"])
    assert len(idle) == 2
