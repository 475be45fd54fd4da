"""One client's window in one shard: what became of each number, compared with a dictionary of everything."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from atoll.persistence.records import ClientRow, Record, RecordedReply
from atoll.sharding.window import KNOWN_BYTES, Replies, Verdict, Window

WIDTH = 8


def reply(number: int, text: str = "") -> RecordedReply:
    return RecordedReply(0, f"{number}{text}".encode(), 0)


# ---- against a model

numbers = st.integers(1, 24)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), numbers, numbers, st.integers(0, 3)),
        st.tuples(st.sampled_from(["record", "remember", "read", "bounce"]), numbers, st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_it_knows_what_a_dictionary_of_everything_knows(script: list[tuple[str, int, int, int]]) -> None:
    """PR19, PR21, PR22: whatever comes in whatever order: the verdict is that of somebody who remembers every number and
    the highest floor, and no number below it is kept."""
    replies = Replies()
    window: Window[str] = Window(replies=replies)
    everything: dict[int, str] = {}
    floor = 1
    for what, number, called_floor, back in script:
        if what == "call":
            floor = max(floor, called_floor)
            window.raise_floor(called_floor)
            prev = max(0, number - back) if back else 0
            verdict = window.admit(number, prev, WIDTH)
            if number < floor:
                expected = Verdict.BELOW_FLOOR
            elif number >= floor + WIDTH:
                expected = Verdict.BEYOND_WINDOW
            elif everything.get(number) == "pending":
                expected = Verdict.PENDING
            elif everything.get(number) in ("recorded", "remembered"):
                expected = Verdict.ANSWERED
            elif prev >= floor and prev not in everything:
                expected = Verdict.OUT_OF_ORDER
            else:
                expected = Verdict.NEW
            assert verdict is expected
            if verdict is Verdict.NEW:
                window.begin(number, f"command {number}")
                everything[number] = "pending"
            elif verdict is Verdict.PENDING:
                assert window.pending(number) == f"command {number}"
            elif verdict is Verdict.ANSWERED:
                assert window.known(number).reply == reply(number)
        elif everything.get(number) == "pending":
            if what == "bounce":
                window.bounce(number)
                del everything[number]
            else:
                everything[number] = {"record": "recorded", "remember": "remembered", "read": "read"}[what]
                if what == "record":
                    window.record(number, reply(number), 1)
                elif what == "remember":
                    window.remember(number, reply(number), 0)
                else:
                    window.read(number)
        kept = {number for number in everything if number >= floor}
        assert len(window) == len(kept)
        known = [number for number in kept if everything[number] in ("recorded", "remembered")]
        assert replies.bytes == sum(KNOWN_BYTES + len(reply(number).payload) for number in known)
        assert window.floor == floor
    recorded = {number for number, how in everything.items() if how == "recorded" and number >= floor}
    assert {number for number, _ in window.recorded(1)} == recorded


# ---- one by one


def test_a_repeated_query_reads_again() -> None:
    """PR17: a query's answer is not kept; the number is known as to order."""
    window: Window[Any] = Window()
    window.begin(1, "query")
    window.read(1)
    assert window.admit(1, 0, WIDTH) is Verdict.NEW
    assert window.admit(2, 1, WIDTH) is Verdict.NEW


def test_a_jump_of_the_floor_costs_no_loop() -> None:
    """A client may claim any floor; it only forgets its own numbers by it."""
    window: Window[Any] = Window()
    window.begin(1, "x")
    window.record(1, reply(1), 1)
    window.remember(2, reply(2), 0)
    window.raise_floor(2**63 - 1)
    assert len(window) == 0
    assert window.take_riders(1) == ()


def test_riders_are_taken_once_and_wait_for_their_record() -> None:
    """PR20: remembered replies go with the next record; from then on they are as durable as that."""
    window: Window[Any] = Window()
    window.remember(1, reply(1), 0)
    window.remember(2, reply(2), 3)
    assert list(window.recorded(99)) == []
    assert window.known(2).ticket == 3
    assert window.take_riders(5) == ((1, reply(1)), (2, reply(2)))
    assert window.take_riders(6) == ()
    assert window.known(1).ticket == window.known(2).ticket == 5
    assert list(window.recorded(4)) == []
    assert [number for number, _ in window.recorded(5)] == [1, 2]


def test_a_row_shows_only_what_is_committed() -> None:
    """PR06: a checkpoint between staging and commit."""
    window: Window[Any] = Window()
    for number in (1, 2, 3):
        window.record(number, reply(number), number)
    assert window.row(7, 2) == ClientRow(7, 1, ((1, reply(1)), (2, reply(2))))


def test_what_is_answered_below_the_floor_is_not_kept() -> None:
    """PR19, PR26: the client gave it up while it ran."""
    window: Window[Any] = Window()
    window.begin(1, "slow")
    window.raise_floor(5)
    window.record(1, reply(1), 1)
    window.remember(2, reply(2), 0)
    window.read(3)
    assert len(window) == 0


def test_a_window_comes_back_from_its_row_and_the_tail() -> None:
    """PR19, J05: the row, then the records above p in order: the highest floor, and all replies at or above it."""
    window: Window[Any] = Window.from_row(ClientRow(7, 3, ((3, reply(3)), (4, reply(4)))))
    window.lay(Record(0, 1, client=7, number=6, floor=4, reply=reply(6), riders=((5, reply(5)), (3, reply(3)))))
    window.lay(Record(0, 2, client=7, number=7, floor=2, reply=reply(7)))
    assert window.floor == 4
    assert window.row(7, 0) == ClientRow(7, 4, tuple((number, reply(number)) for number in (4, 5, 6, 7)))
    assert window.admit(3, 0, WIDTH) is Verdict.BELOW_FLOOR
    assert window.admit(5, 0, WIDTH) is Verdict.ANSWERED


def test_laying_the_tail_twice_changes_nothing() -> None:
    """PR08, J04: a checkpoint that stopped half way wrote part of it already."""
    records = [Record(0, n, client=7, number=n, floor=max(1, n - 2), reply=reply(n)) for n in range(1, 8)]
    once: Window[Any] = Window()
    for record in records:
        once.lay(record)
    twice: Window[Any] = Window.from_row(once.row(7, 0))
    for record in records:
        twice.lay(record)
    assert twice.row(7, 0) == once.row(7, 0)
