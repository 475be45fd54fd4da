"""The lanes: numbers, floors, `prev`, and what is sent again, compared with a list of everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.actors.calls import Mode, Request
from atoll.actors.stored import StoredMessage
from atoll.cluster.lanes import CommandLane, Lane, Outgoing, OutgoingCommand, OutgoingMessage, Stream
from atoll.persistence.records import outbox_number
from atoll.sharding.messages import Call

FUTURE: Any = None
"""A lane never looks at it."""

SCRIPTS = st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, 1000)), max_size=80)
"""A letter: something for that entity enters. A number: what entered at that place is settled, counted in a circle."""
WINDOW = 7


def outgoing(id: str, deadline: float = 100.0) -> OutgoingCommand:
    return OutgoingCommand(Request("Box", id, "put", b"x"), deadline=deadline, gives_up=deadline, done=FUTURE)


def message(id: str, number: int) -> OutgoingMessage:
    return OutgoingMessage(StoredMessage("Box", id, "put", b"x"), number, arrived=FUTURE)


def entered(lane: CommandLane, *ids: str) -> list[OutgoingCommand]:
    outs = [outgoing(id) for id in ids]
    for out in outs:
        lane.enter(out)
    return outs


def resent(lane: Lane[Any], now: float) -> list[Call]:
    """What goes out after the lane has a new connection."""
    lane.all_again()
    calls = []
    while (out := lane.next_again()) is not None:
        lane.resend.popleft()
        calls.append(lane.call(out, now, lane.prev(out)))
    return calls


def follow(lane: Lane[Any], script: list[str | int], make: Any, numbers: list[int]) -> None:
    """Play a script, in which the n-th to enter has `numbers[n]`, beside one who remembers everything."""
    everything: list[int] = []
    unanswered: list[tuple[int, str]] = []
    for step in script:
        if isinstance(step, str):
            number = numbers[len(everything)]
            out: Outgoing[Any] = make(step, number)
            remembered = [number for number in everything if number >= lane.floor]
            assert lane.room(out, WINDOW, 100) is (len(remembered) < WINDOW)
            lane.enter(out)
            assert out.number == number
            earlier = [number for number, id in unanswered if id == step]
            assert lane.prev(out) == (earlier[-1] if earlier else 0)
            everything.append(number)
            unanswered.append((number, step))
        else:
            number = everything[step % len(everything)] if everything else 1
            known = [entry for entry in unanswered if entry[0] == number]
            assert (lane.settle(number) is not None) == bool(known)
            unanswered = [entry for entry in unanswered if entry[0] != number]
        next_number = everything[-1] + 1 if everything else 1
        assert lane.floor == (unanswered[0][0] if unanswered else next_number)
    calls = resent(lane, 0.0)
    assert [(call.number, call.id) for call in calls] == unanswered
    for position, call in enumerate(calls):
        earlier = [number for number, id in unanswered[:position] if id == call.id]
        assert call.prev == (earlier[-1] if earlier else 0)
        assert (call.shard, call.sender, call.floor) == (3, lane.sender, lane.floor)


@given(SCRIPTS)
def test_floor_and_prev_are_those_of_who_remembers_everything(script: list[str | int]) -> None:
    """PR22, PR26, J17: the floor is the lowest unanswered number, `prev` the newest unanswered one before it to the same
    entity, and a resend is everything unanswered in order. The window counts from the floor."""
    follow(CommandLane(3), script, lambda name, _: outgoing(name), list(range(1, 100)))


@given(SCRIPTS, st.lists(st.integers(1, 1 << 40), min_size=81, max_size=81))
def test_a_stream_does_the_same_whatever_gaps_its_numbers_have(script: list[str | int], gaps: list[int]) -> None:
    """PR24, M07: outbox numbers grow and are not dense. Floor and `prev` are real numbers of the stream all the same,
    its window counts messages and not numbers, and no gap is walked through."""
    numbers, newest = [], 0
    for gap in gaps:
        newest += gap
        numbers.append(newest)
    follow(Stream(3, 8, 1), script, message, numbers)


def test_a_message_carries_its_stream_and_no_deadline() -> None:
    """PR24: the receiver knows a message by its sending shard, and a former owner's by the epoch."""
    stream = Stream(3, 8, 5)
    number = outbox_number(1000, 2)
    stream.enter(message("a", number))
    (first,) = resent(stream, 50.0)
    assert (first.shard, first.number, first.floor, first.prev, first.attempt) == (3, number, number, 0, 1)
    assert (first.mode, first.remaining_ms, first.command_id, first.chain) == (Mode.TELL, 0, "", ())
    assert (first.kind, first.id, first.method, first.arguments) == ("Box", "a", "put", b"x")
    assert (first.sender, first.sender_epoch) == (8, 5)
    stream.epoch = 6
    (second,) = resent(stream, 50.0)
    assert (second.number, second.attempt, second.sender_epoch) == (number, 2, 6)


def test_attempts_and_remaining_time_are_counted_per_sending() -> None:
    """PR20: the host must be able to tell a first sending from a repeat; a deadline that passed is 0, not negative."""
    lane = CommandLane(0)
    (out,) = entered(lane, "a")
    first = lane.call(out, 40.0, 0)
    assert (first.attempt, first.remaining_ms) == (1, 60_000)
    assert (first.sender, first.sender_epoch) == (0, 0)
    (second,) = resent(lane, 99.5)
    assert (second.attempt, second.remaining_ms, second.number) == (2, 500, 1)
    (third,) = resent(lane, 101.0)
    assert third.remaining_ms == 0
    assert out.outstanding == 3


@pytest.mark.parametrize(("width", "mailbox", "entered_already", "room"), [(4, 9, 3, True), (4, 9, 4, False)])
def test_a_lane_keeps_to_the_shards_window(width: int, mailbox: int, entered_already: int, room: bool) -> None:
    """J17: counted from the floor: answers above it make no room."""
    lane = CommandLane(0)
    entered(lane, *"abcdefgh"[:entered_already])
    assert lane.room(outgoing("z"), width, mailbox) is room
    if entered_already == 4:
        lane.settle(3)
        assert not lane.room(outgoing("z"), width, mailbox)
        lane.settle(1)
        assert lane.room(outgoing("z"), width, mailbox)


def test_a_lane_keeps_to_one_entitys_mailbox() -> None:
    """What would only be bounced stays here; other entities are not held up by it."""
    lane = CommandLane(0)
    entered(lane, "a", "a")
    assert not lane.room(outgoing("a"), 100, 2)
    assert lane.room(outgoing("b"), 100, 2)
    lane.settle(1)
    assert lane.room(outgoing("a"), 100, 2)


def test_a_settled_number_is_settled_once() -> None:
    """A second answer, or one after the deadline, means nothing."""
    lane = CommandLane(0)
    (out,) = entered(lane, "a")
    assert lane.settle(1) is out
    assert lane.settle(1) is None
    assert lane.settle(99) is None
    assert resent(lane, 0.0) == []
