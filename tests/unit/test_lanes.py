"""The client's lane: numbers, floors, `prev`, and what is sent again, compared with a list of everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.actors.calls import Request
from atoll.cluster.lanes import Lane, Outgoing

FUTURE: Any = None
"""A lane never looks at it."""


def outgoing(id: str, deadline: float = 100.0) -> Outgoing:
    return Outgoing(Request("Box", id, "put", b"x"), deadline, FUTURE)


def entered(lane: Lane, *ids: str) -> list[Outgoing]:
    outs = [outgoing(id) for id in ids]
    for out in outs:
        lane.enter(out)
    return outs


@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(1, 30)), max_size=60))
def test_floor_and_prev_are_those_of_who_remembers_everything(script: list[str | int]) -> None:
    """PR22, PR26: letters enter a command to that entity, numbers settle one. The floor is the lowest unanswered number,
    `prev` the newest unanswered one before it to the same entity, and a resend is everything unanswered in order."""
    lane = Lane(3)
    everything: list[tuple[int, str]] = []
    unanswered: list[tuple[int, str]] = []
    for step in script:
        if isinstance(step, str):
            out = outgoing(step)
            lane.enter(out)
            assert out.number == len(everything) + 1
            earlier = [number for number, id in unanswered if id == step]
            assert lane.newest_before(out) == (earlier[-1] if earlier else 0)
            everything.append((out.number, step))
            unanswered.append((out.number, step))
        else:
            known = [entry for entry in unanswered if entry[0] == step]
            assert (lane.settle(step) is not None) == bool(known)
            unanswered = [entry for entry in unanswered if entry[0] != step]
        assert lane.floor == (unanswered[0][0] if unanswered else len(everything) + 1)
    calls = lane.again(0.0)
    assert [(call.number, call.id) for call in calls] == unanswered
    for position, call in enumerate(calls):
        earlier = [number for number, id in unanswered[:position] if id == call.id]
        assert call.prev == (earlier[-1] if earlier else 0)
        assert (call.shard, call.floor) == (3, lane.floor)


def test_attempts_and_remaining_time_are_counted_per_sending() -> None:
    """PR20: the host must be able to tell a first sending from a repeat; a deadline that passed is 0, not negative."""
    lane = Lane(0)
    (out,) = entered(lane, "a")
    first = lane.call(out, 40.0, 0)
    assert (first.attempt, first.remaining_ms) == (1, 60_000)
    (second,) = lane.again(99.5)
    assert (second.attempt, second.remaining_ms, second.number) == (2, 500, 1)
    (third,) = lane.again(101.0)
    assert third.remaining_ms == 0
    assert out.outstanding == 3


@pytest.mark.parametrize(("width", "mailbox", "entered_already", "room"), [(4, 9, 3, True), (4, 9, 4, False)])
def test_a_lane_keeps_to_the_shards_window(width: int, mailbox: int, entered_already: int, room: bool) -> None:
    """J17: counted from the floor: answers above it make no room."""
    lane = Lane(0)
    entered(lane, *"abcdefgh"[:entered_already])
    assert lane.room(outgoing("z"), width, mailbox) is room
    if entered_already == 4:
        lane.settle(3)
        assert not lane.room(outgoing("z"), width, mailbox)
        lane.settle(1)
        assert lane.room(outgoing("z"), width, mailbox)


def test_a_lane_keeps_to_one_entitys_mailbox() -> None:
    """What would only be bounced stays here; other entities are not held up by it."""
    lane = Lane(0)
    entered(lane, "a", "a")
    assert not lane.room(outgoing("a"), 100, 2)
    assert lane.room(outgoing("b"), 100, 2)
    lane.settle(1)
    assert lane.room(outgoing("a"), 100, 2)


def test_a_settled_number_is_settled_once() -> None:
    """A second answer, or one after the deadline, means nothing."""
    lane = Lane(0)
    (out,) = entered(lane, "a")
    assert lane.settle(1) is out
    assert lane.settle(1) is None
    assert lane.settle(99) is None
    assert lane.again(0.0) == []
