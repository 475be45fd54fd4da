"""The output gate: what vouches for each answer, and the order in which answers leave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from atoll.sharding.gate import OutputGate
from atoll.sharding.lease import Lease
from atoll.sharding.messages import Answer


class Commits:
    """Stands in for the commit path: tickets are committed when the test says so."""

    def __init__(self) -> None:
        self.committed = 0
        self._waiting: list[tuple[int, Any]] = []

    def when_committed(self, ticket: int, act: Any) -> None:
        if ticket <= self.committed:
            act()
        else:
            self._waiting.append((ticket, act))

    def commit(self, ticket: int) -> None:
        self.committed = ticket
        due = [act for wanted, act in self._waiting if wanted <= ticket]
        self._waiting = [entry for entry in self._waiting if entry[0] > ticket]
        for act in due:
            act()


class Fixture:
    def __init__(self) -> None:
        self.now = 0.0
        self.commits: Any = Commits()
        self.lease = Lease(3.0, lambda: self.now)
        self.lease.until = 3.0
        self.gate = OutputGate(self.commits, self.lease)
        self.left: list[int] = []
        self.pending: Any = SimpleNamespace(reply=lambda answer: self.left.append(answer.number))

    def effect(self, ticket: int, number: int) -> None:
        self.gate.effect(ticket, self.pending, Answer(0, number, 0, b""))

    def read(self, ticket: int, number: int) -> None:
        self.gate.read(ticket, self.pending, Answer(0, number, 0, b""))


def test_an_effect_waits_for_its_commit_and_for_nothing_else() -> None:
    """PR15: the commit is the proof; a lapsed lease does not hold it."""
    f = Fixture()
    f.now = 99.0
    f.effect(1, 1)
    f.effect(2, 2)
    assert f.left == []
    f.commits.commit(1)
    assert f.left == [1]
    f.commits.commit(2)
    assert f.left == [1, 2]


def test_a_read_waits_for_the_commit_it_saw_then_for_the_lease() -> None:
    """PR17: the lease is looked at when the answer would leave, not when the command ran."""
    f = Fixture()
    f.read(0, 1)
    f.read(1, 2)
    assert f.left == [1]
    f.now = 3.0
    f.commits.commit(1)
    assert f.left == [1]
    f.lease.until = 6.0
    f.gate.lease_renewed()
    assert f.left == [1, 2]


def test_held_answers_are_looked_at_again_with_each_renewal() -> None:
    """PR17: a renewal that came too late to be worth anything lets nothing go; order is kept."""
    f = Fixture()
    f.now = 5.0
    for number in (1, 2, 3):
        f.read(0, number)
    f.lease.until = 4.0
    f.gate.lease_renewed()
    assert f.left == []
    f.lease.until = 6.0
    f.gate.lease_renewed()
    assert f.left == [1, 2, 3]


def test_a_host_without_any_lease_yet_answers_no_read() -> None:
    """PR17."""
    f = Fixture()
    f.lease = Lease(3.0, lambda: f.now)
    f.gate = OutputGate(f.commits, f.lease)
    f.read(0, 1)
    assert f.left == []
