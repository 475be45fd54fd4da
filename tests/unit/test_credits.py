"""Credits: both ends keep the same account, whatever is on its way between them."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from atoll.cluster.credits import Allowance, Grant
from atoll.sharding.messages import Credit

COMMANDS = 8
BYTES = 1000
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 700)),
        st.tuples(st.sampled_from(["arrive", "reply", "hear"]), st.just(0)),
        st.tuples(st.just("narrow"), st.integers(0, 16)),
    ),
    max_size=300,
)
"""A sender with something to send, of so many bytes; a frame arrives; a call is done; a credit arrives; the window."""


class Pair:
    """A host's account and its client's, and what is on its way."""

    def __init__(self, commands: int = COMMANDS, size: int = BYTES) -> None:
        self.grant = Grant(Credit(commands, size), commands, size)
        self.allowance = Allowance()
        self.allowance.granted(Credit(commands, size))
        self.calls: deque[int] = deque()
        self.held: deque[int] = deque()
        self.credits: deque[Credit] = deque()

    def send(self, size: int) -> None:
        if self.allowance.room:
            self.allowance.sent(size)
            self.calls.append(size)

    def arrive(self, _: int = 0) -> None:
        if self.calls:
            size = self.calls.popleft()
            assert self.grant.take(1, size, size), "an honest client went over what it was granted"
            self.held.append(size)

    def reply(self, _: int = 0) -> None:
        if self.held and self.grant.give_back(self.held.popleft()):
            self.credits.append(self.grant.credit())

    def hear(self, _: int = 0) -> None:
        if self.credits:
            self.allowance.granted(self.credits.popleft())

    def narrow(self, sixteenths: int) -> None:
        if self.grant.narrow(sixteenths / 16):
            self.credits.append(self.grant.credit())

    def settle(self) -> None:
        """Everything arrives, is done, and is heard of."""
        while self.calls or self.held or self.credits:
            self.arrive()
            self.reply()
            self.hear()


@given(STEPS)
def test_who_keeps_to_what_it_heard_is_never_over_and_never_stuck(steps: list[tuple[str, int]]) -> None:
    """M14: also while the window shrinks and grows under way. What is held is bounded by the window, and once all is done
    there is room for one more, whatever the window is."""
    pair = Pair()
    for what, how in steps:
        getattr(pair, what)(how)
        assert (pair.grant.held_commands, pair.grant.held_bytes) == (len(pair.held), sum(pair.held))
        assert len(pair.held) <= COMMANDS
        assert sum(pair.held) < BYTES + 700
    pair.settle()
    assert pair.allowance.room


def test_a_credit_comes_with_each_quarter_of_the_window() -> None:
    """Few messages, and nobody waits for one who does not fill the window."""
    pair = Pair(commands=100)
    for _ in range(100):
        pair.send(1)
    assert not pair.allowance.room
    for _ in range(100):
        pair.arrive()
    told = []
    for _ in range(100):
        pair.reply()
        told.append(len(pair.credits))
    assert [told.index(count) + 1 for count in range(1, 5)] == [25, 50, 75, 100]


def test_a_narrower_window_takes_nothing_back_and_a_wider_one_is_told_at_once() -> None:
    """R05: less comes back until what is under way fits."""
    pair = Pair(commands=16)
    for _ in range(16):
        pair.send(0)
        pair.arrive()
    pair.narrow(4)
    for _ in range(12):
        pair.reply()
    assert not pair.credits
    pair.reply()
    assert pair.credits.pop() == Credit(17, BYTES)
    pair.narrow(16)
    assert pair.credits.pop().commands == 29


def test_one_command_of_any_size_goes() -> None:
    """M14: larger than the whole window; the next one waits for it."""
    pair = Pair()
    pair.send(5 * BYTES)
    assert not pair.allowance.room
    pair.settle()
    assert pair.allowance.room


def test_what_goes_over_the_limits_is_seen() -> None:
    """R03: by one call, and by one byte."""
    assert Grant(Credit(2, BYTES), 2, BYTES).take(2, BYTES + 7, 8)
    assert not Grant(Credit(2, BYTES), 2, BYTES).take(3, 0, 0)
    assert not Grant(Credit(2, BYTES), 2, BYTES).take(2, BYTES + 8, 8)
