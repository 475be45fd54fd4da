"""How much of a lane one entity gets: by what it answers."""

from __future__ import annotations

from typing import Any

from atoll.actors.calls import Request
from atoll.cluster.lanes import CommandLane, OutgoingCommand
from atoll.cluster.pace import PACE_FIRST, PACE_S, Pace

FUTURE: Any = None
"""A lane never looks at it."""


class Driver:
    """Offers commands to a lane, lets in all that may enter, and answers."""

    def __init__(self, width: int = 1024, mailbox: int = 1000) -> None:
        self.lane = CommandLane(0)
        self.width, self.mailbox = width, mailbox
        self.entered: list[tuple[str, int]] = []
        """(ID, which of those to it), in the order entered."""
        self.now = 0.0

    def offer(self, id: str, count: int, *, fail_fast: bool = False, until: float = 9e9) -> list[OutgoingCommand]:
        outs = [
            OutgoingCommand(
                Request("Box", id, f"{index}", b"", fail_fast=fail_fast), deadline=until, gives_up=until, done=FUTURE
            )
            for index in range(count)
        ]
        for out in outs:
            self.lane.backlog.append(out)
            self.let_in()
        return outs

    def let_in(self) -> None:
        while (queue := self.lane.next(self.width, self.mailbox, self.now)) is not None:
            out = queue.popleft()
            self.lane.enter(out)
            self.entered.append((out.request.id, int(out.request.method)))

    def under_way(self, id: str) -> int:
        return sum(out.request.id == id for out in self.lane.unanswered.values())

    def answer(self, id: str) -> None:
        number, out = next((n, out) for n, out in self.lane.unanswered.items() if out.request.id == id)
        self.lane.answered(out, self.now)
        self.lane.settle(number)
        self.let_in()

    def seen(self, id: str) -> list[int]:
        return [index for name, index in self.entered if name == id]


def test_an_entity_that_answers_once_a_second_keeps_a_few_places() -> None:
    """M14: and those to it stay in order."""
    d = Driver()
    d.offer("slow", 100)
    assert d.under_way("slow") == PACE_FIRST
    for _ in range(50):
        d.now += 1.0
        d.answer("slow")
        assert d.under_way("slow") <= PACE_FIRST + 2
    assert d.seen("slow") == list(range(len(d.seen("slow"))))


def test_a_quick_one_soon_has_half_the_window_and_never_more() -> None:
    d = Driver()
    d.offer("quick", 5000)
    for _ in range(4000):
        d.now += 0.0001
        d.answer("quick")
        assert d.under_way("quick") <= 512
    assert d.under_way("quick") == 512
    assert d.seen("quick") == list(range(4512))


def test_the_mailbox_bounds_it_too() -> None:
    d = Driver(mailbox=20)
    d.offer("quick", 200)
    for _ in range(100):
        d.answer("quick")
    assert d.under_way("quick") == 20


def test_who_stops_answering_gets_no_more_than_it_answered_lately() -> None:
    pace: Pace[int] = Pace(0.0)
    for index in range(100):
        pace.answered(index * 0.001)
    assert pace.under_way_max == PACE_FIRST + 200
    pace.answered(PACE_S)
    assert pace.under_way_max == PACE_FIRST + 200
    pace.answered(PACE_S * 4)
    assert pace.under_way_max == PACE_FIRST + 2


def test_what_would_be_answered_too_late_is_refused_and_the_rest_is_sent() -> None:
    """M12: at ten times what an entity can do, what is sent has time enough, and the entity is never without work."""
    d = Driver()
    in_time = 0
    for tick in range(5000):
        d.now = tick / 1000
        d.offer("hot", 10, until=d.now + 1.0)
        out = next(iter(d.lane.unanswered.values()))
        in_time += d.now <= out.deadline
        d.answer("hot")
    assert in_time > 4500
    assert len(d.lane.refused) > 5 * 4000


def test_an_entity_that_stood_still_is_not_judged_by_its_first_answer() -> None:
    """After a stall nobody knows how quick it is: those who wait are not sent away for that."""
    pace: Pace[int] = Pace(0.0)
    for index in range(1001):
        pace.answered(index * 0.001)
    assert 0.4 < pace.wait_s(500) < 0.6
    pace.answered(5.0)
    assert pace.wait_s(500) == 0.0
    for index in range(1001):
        pace.answered(5.0 + index * 0.001)
    assert 0.4 < pace.wait_s(500) < 0.6
    assert pace.wait_s(PACE_FIRST - 1) == 0.0


def test_busy_entities_and_the_others_take_turns() -> None:
    """M14: where the window is full, neither those that wait beside the backlog nor those in it starve."""
    d = Driver(width=16)
    d.offer("a", 50)
    d.offer("b", 50)
    for index in range(40):
        d.offer(f"single {index}", 1)
    for _ in range(60):
        d.now += 0.001
        (oldest, *_) = d.lane.unanswered.values()
        d.answer(oldest.request.id)
    names = [name for name, _ in d.entered[-30:]]
    assert names.count("a") >= 5
    assert names.count("b") >= 5
    assert sum(name.startswith("single") for name in names) >= 5
    for id in "ab":
        assert d.seen(id) == list(range(len(d.seen(id))))


def test_what_fails_fast_is_not_kept_back_for_being_many() -> None:
    """A full mailbox refuses it, and nothing else does."""
    d = Driver()
    d.offer("a", 100, fail_fast=True)
    assert d.under_way("a") == 100


def test_a_busy_entity_without_commands_is_forgotten() -> None:
    """Memory is for what waits."""
    d = Driver()
    outs = d.offer("a", 20)
    assert len(d.lane.waiting()) == 20 - PACE_FIRST
    for out in outs[PACE_FIRST:]:
        d.lane.withdraw(out)
    for _ in range(PACE_FIRST):
        d.answer("a")
    assert (d.lane.busy, d.lane.waits, d.lane.waiting()) == ({}, False, [])
