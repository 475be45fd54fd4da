"""Event-sourced entities: state is the sum of the events, live, after a failure, and after recovery."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.actors.activation import Activation
from atoll.actors.calls import Status
from atoll.actors.kind import kind_of
from atoll.actors.stored import StoredEntity, StoredEvent, StoredState
from atoll.actors.turn import Turn, TurnResult

NOW = Turn(0, 1.0)


@dataclass(frozen=True)
class Deposited:
    amount: int


class Withdrawn(msgspec.Struct, frozen=True):
    amount: int


@dataclass(frozen=True)
class Noted:
    text: str


@dataclass(frozen=True)
class Unapplied:
    pass


class Account(atoll.EventSourced):
    balance: int = 0
    notes: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def deposit(self, amount: int, times: int = 1) -> int:
        for _ in range(times):
            self.emit(Deposited(amount))
        return self.balance

    @atoll.command
    def withdraw(self, amount: int) -> int:
        self.emit(Withdrawn(amount))
        if self.balance < 0:
            raise atoll.Rejected("overdrawn")
        return self.balance

    @atoll.command
    def note(self, text: str, then: str = "") -> int:
        self.emit(Noted(text))
        if then == "raise":
            raise ValueError(then)
        return len(self.notes)

    @atoll.command
    def misuse(self, how: str) -> None:
        if how == "set":
            self.balance = 100
        elif how == "new":
            self.total = 100
        elif how == "del":
            del self.balance
        elif how == "free":
            self._cache = 1
        elif how == "unknown":
            self.emit(Unapplied())
        elif how == "unreadable":
            self.emit(Deposited("five"))
        elif how == "large":
            self.emit(Noted("x" * 5000))
        elif how == "swallow":
            self.emit(Deposited(1))
            with contextlib.suppress(ValueError):
                self.emit(Noted("bad"))

    @atoll.command
    def nothing(self) -> int:
        return self.balance

    @atoll.command
    def close(self) -> None:
        self.emit(Noted("closed"))
        self.context.delete()

    @atoll.query
    def current(self) -> int:
        return self.balance

    @atoll.query
    def cheat(self) -> int:
        self.emit(Deposited(1))
        return self.balance

    @atoll.apply
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @atoll.apply
    def _withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount

    @atoll.apply
    def _noted(self, event: Noted) -> None:
        self.notes.append(event.text)
        if event.text == "bad":
            raise ValueError("half-way")


def activation(stored: StoredEntity | None = None, **settings: int) -> Activation:
    asked, _ = atoll.Settings.load(settings, {})
    return Activation(kind_of(Account), "a", stored or StoredEntity(), asked)


def run(it: Activation, name: str, *args: Any) -> TurnResult:
    handler = it.kind.handlers[name]
    return it.run(handler, handler.encode_arguments(args, {}), NOW)


def value(result: TurnResult) -> Any:
    assert result.status is Status.OK, result.payload
    return msgspec.msgpack.decode(result.payload)


def deposited(amount: int) -> StoredEvent:
    return StoredEvent("Deposited", 1, msgspec.msgpack.encode({"amount": amount}))


def test_an_event_is_applied_at_once_and_carried_encoded() -> None:
    it = activation()
    result = run(it, "deposit", 10, 2)
    assert value(result) == 20
    assert result.events == (deposited(10), deposited(10))
    assert (result.changed, result.state, it.seq) == (True, None, 1)  # one version per turn, not per event


def test_a_turn_without_events_commits_nothing() -> None:
    it = activation()
    result = run(it, "nothing")
    assert (result.status, result.changed, it.seq) == (Status.OK, False, 0)


def test_recovery_from_events_alone() -> None:
    it = activation(StoredEntity(2, None, (deposited(3), deposited(4))))
    assert it.seq == 2
    assert value(run(it, "current")) == 7
    assert it.stored() == StoredEntity(2, StoredState(1, msgspec.msgpack.encode({"balance": 7, "notes": []})))


def test_a_snapshot_rides_along_every_so_many_events() -> None:
    """Counted in events since the last one, so that activation stays bounded."""
    it = activation(snapshot_every=3)
    snapshots = [run(it, "deposit", 1).state is not None for _ in range(7)]
    assert snapshots == [False, False, True, False, False, True, False]
    assert run(it, "deposit", 1, 5).state is not None


def test_a_snapshot_is_due_at_once_when_recovery_had_many_events() -> None:
    it = activation(StoredEntity(5, None, tuple(deposited(1) for _ in range(5))), snapshot_every=3)
    result = run(it, "deposit", 1)
    assert result.state is not None
    assert msgspec.msgpack.decode(result.state.data)["balance"] == 6


@pytest.mark.parametrize(
    ("name", "args", "status"),
    [
        ("withdraw", (50,), Status.REJECTED),
        ("note", ("x", "raise"), Status.HANDLER_FAILED),
        ("note", ("bad",), Status.HANDLER_FAILED),
        ("misuse", ("swallow",), Status.HANDLER_FAILED),
    ],
)
@pytest.mark.parametrize("snapshot_every", [1, 3, 100])
def test_a_failure_after_emit_leaves_no_trace(name: str, args: Any, status: Status, snapshot_every: int) -> None:
    """M09: also when it raised after `emit`, and when an @apply method failed half-way and the handler went on."""
    it = activation(snapshot_every=snapshot_every)
    for amount in (1, 2, 3, 4):
        run(it, "deposit", amount)
    result = run(it, name, *args)
    assert result.status is status
    assert (result.changed, result.events, result.state) == (False, (), None)
    assert it.fields() == {"balance": 10, "notes": []}
    assert it.seq == 4
    assert value(run(it, "deposit", 5)) == 15


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("set", "Account.balance is set outside of an @atoll.apply method"),
        ("new", "Account.total is not a state field: annotate it in the class, or name it _total"),
        ("del", "cannot be deleted"),
        ("unknown", "Account has no @atoll.apply method for Unapplied"),
        ("unreadable", "the event Deposited cannot be stored: Expected `int`, got `str`"),
        ("large", "event_bytes_max (1000)"),
    ],
)
def test_misuse_is_refused_and_says_what_to_do(how: str, said: str) -> None:
    it = activation(event_bytes_max=1000)
    result = run(it, "misuse", how)
    assert result.status is Status.HANDLER_FAILED
    assert said in result.payload.decode()
    assert it.fields()["balance"] == 0


def test_underscore_names_are_free() -> None:
    assert run(activation(), "misuse", "free").status is Status.OK


def test_a_query_cannot_emit() -> None:
    it = activation()
    result = run(it, "cheat")
    assert "emit in a query" in result.payload.decode()
    assert value(run(it, "current")) == 0


def test_an_apply_method_sees_neither_context_nor_emit() -> None:
    """It runs again at every recovery, where there is no turn: what it needs belongs into the event."""

    class Clocked(atoll.EventSourced):
        when: str = ""

        @atoll.command
        def go(self, what: str) -> None:
            self.emit(Noted(what))

        @atoll.apply
        def _noted(self, event: Noted) -> None:
            if event.text == "context":
                self.when = str(self.context.now)
            else:
                self.emit(Noted("x"))

    it = Activation(kind_of(Clocked), "c", StoredEntity(), atoll.Settings())
    assert "put what they need into the event" in run(it, "go", "context").payload.decode()
    assert "not in @atoll.apply methods" in run(it, "go", "emit").payload.decode()


def test_the_live_state_never_shares_objects_with_the_handler() -> None:
    """What is applied is what a replay will apply: the event as it reads back."""

    @dataclass(frozen=True)
    class Listed:
        items: list[int]

    class Basket(atoll.EventSourced):
        items: list[int] = atoll.field(default_factory=list)

        @atoll.command
        def take(self) -> None:
            items = [1]
            self.emit(Listed(items))
            items.append(2)

        @atoll.apply
        def _listed(self, event: Listed) -> None:
            self.items = event.items

    it = Activation(kind_of(Basket), "b", StoredEntity(), atoll.Settings())
    run(it, "take")
    assert it.fields() == {"items": [1]}


def test_a_deleted_account_begins_from_defaults_and_carries_its_last_events() -> None:
    """J09, M20: the version goes on; the closing event still reaches history."""
    it = activation()
    run(it, "deposit", 10)
    result = run(it, "close")
    assert (result.deleted, result.changed, result.state, it.seq) == (True, True, None, 2)
    assert [event.name for event in result.events] == ["Noted"]
    assert it.stored() == StoredEntity(2)
    assert value(run(it, "deposit", 1)) == 1
    assert run(it, "note", "x", "raise").status is Status.HANDLER_FAILED
    assert it.fields() == {"balance": 1, "notes": []}


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (StoredEvent("Gone", 1, b"\x80"), r"no @atoll.apply method for a stored event Gone"),
        (StoredEvent("Deposited", 1, b"\xc1"), r"event 2 of 2 .* Deposited version 1, does not apply"),
        (StoredEvent("Deposited", 1, b"\x80"), r"missing required field `amount`"),
        (StoredEvent("Deposited", 2, b"\x80"), r"knows 1 to 1: run the newer code"),
        (StoredEvent("Noted", 1, msgspec.msgpack.encode({"text": "bad"})), r"ValueError: half-way"),
    ],
)
def test_a_stored_event_that_does_not_apply_is_reported_with_its_place(event: StoredEvent, said: str) -> None:
    """J14: named by entity and event, and never read as something else."""
    with pytest.raises(atoll.CorruptRecord, match=r"Account/a: ") as caught:
        activation(StoredEntity(2, None, (deposited(1), event)))
    assert caught.match(said)


def test_unknown_fields_of_stored_events_are_ignored_and_missing_ones_take_defaults() -> None:
    data = msgspec.msgpack.encode({"amount": 5, "currency": "EUR"})
    assert activation(StoredEntity(1, None, (StoredEvent("Deposited", 1, data),))).fields()["balance"] == 5


@given(
    st.lists(st.tuples(st.sampled_from(["deposit", "withdraw", "note"]), st.integers(0, 9)), max_size=30),
    st.integers(1, 7),
)
def test_snapshots_and_events_always_add_up_to_the_whole_history(work: list[tuple[str, int]], every: int) -> None:
    """J08: recovery from the newest snapshot and later events equals full replay, and equals what is in memory."""
    it = activation(snapshot_every=every)
    snapshot: StoredState | None = None
    since: tuple[StoredEvent, ...] = ()
    history: tuple[StoredEvent, ...] = ()
    for name, number in work:
        result = run(it, name, str(number) if name == "note" else number)
        history += result.events
        since = since + result.events if result.state is None else ()
        snapshot = result.state or snapshot
    recovered = activation(StoredEntity(it.seq, snapshot, since), snapshot_every=every)
    assert recovered.fields() == it.fields() == activation(StoredEntity(it.seq, None, history)).fields()
    assert len(since) < every
