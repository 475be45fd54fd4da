"""`context.send`, `context.schedule` and `context.cancel`: what a turn leaves to be done after it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

import atoll
from atoll.actors.activation import Activation
from atoll.actors.calls import Status
from atoll.actors.kind import kind_of
from atoll.actors.reference import reference
from atoll.actors.stored import StoredEntity, StoredMessage, StoredTimer
from atoll.actors.turn import Turn, TurnResult

NOW_MS = 1_600_000_000_123
SECOND = timedelta(seconds=1)
RAISED: list[Exception] = []


@dataclass(frozen=True)
class Noted:
    text: str


class Post(atoll.Entity, kind="test-sending.post"):
    """Runs what a test hands it."""

    count: int = 0

    @atoll.command
    def do(self, what: str) -> None:
        WORK[what](self)

    @atoll.command
    async def do_slowly(self, what: str) -> None:
        WORK[what](self)

    @atoll.command
    def add(self, amount: int, note: str = "") -> int:
        self.count += amount
        return self.count

    @atoll.command
    def often(self, every: int) -> None: ...

    @atoll.query
    def peek(self, what: str) -> int:
        WORK[what](self)
        return self.count


class Diary(atoll.EventSourced, kind="test-sending.diary"):
    """The same with events."""

    text: str = ""

    @atoll.command
    def do(self, what: str) -> None:
        WORK[what](self)

    @atoll.command
    def add(self, amount: int, note: str = "") -> None: ...

    @atoll.apply
    def _noted(self, event: Noted) -> None:
        self.text += event.text


class Fleeting(Post, durable=False, kind="test-sending.fleeting"):
    """In memory only."""


WORK: dict[str, Any] = {}
"""What handlers do, by name: each test puts its own here."""


class Elsewhere:
    """A caller of some app."""

    def __init__(self, app_name: str) -> None:
        self.app_name = app_name

    async def call(self, request: Any) -> bytes:
        raise AssertionError("nothing is called")


def activation(cls: type = Post, **settings: int) -> Activation:
    asked, _ = atoll.Settings.load(settings, {})
    return Activation(kind_of(cls), "p", StoredEntity(), asked, app_name="shop")


def run(work: Any, it: Activation | None = None, method: str = "do", **turn: Any) -> TurnResult:
    """Run `work(self)` as a command; an exception that it raised is kept in RAISED."""

    def watched(entity: Any) -> None:
        try:
            work(entity)
        except Exception as error:
            RAISED.append(error)
            raise

    RAISED.clear()
    WORK["it"] = watched
    it = it or activation()
    handler = it.kind.handlers[method]
    return it.run(handler, handler.encode_arguments(("it",), {}), Turn(NOW_MS, 1.0, sends_max=100, **turn))


def raised(work: Any, it: Activation | None = None, method: str = "do") -> Exception:
    """What `work(self)` raised. It must have left nothing."""
    result = run(work, it, method)
    assert nothing_of(result)
    assert result.status is Status.HANDLER_FAILED
    return RAISED[-1]


def nothing_of(result: TurnResult) -> bool:
    effects = (result.changed, result.state, result.events, result.messages, result.timers, result.timers_gone)
    return effects == (False, None, (), (), (), ()) and not result.has_effects


def nothing(_: Any) -> None:
    """A command that only runs."""


def other(self: Any, id: str = "q") -> Post:
    return self.context.entity(Post, id)


def unpickled(app_name: str) -> Post:
    return pickle.loads(pickle.dumps(reference(Elsewhere(app_name), kind_of(Post), "q")))


def arguments(**values: Any) -> bytes:
    return msgspec.msgpack.encode(values)


# ---- messages


def test_messages_are_staged_in_order_and_encoded_at_once() -> None:
    """M07: the order in which they were staged is the one in the record."""

    def work(self: Any) -> None:
        self.context.send(other(self).add, 1)
        self.context.send(other(self, "r").add, amount=2, note="x")
        self.context.send(other(self).add, 3)

    result = run(work)
    kind = "test-sending.post"
    assert result.messages == (
        StoredMessage(kind, "q", "add", arguments(amount=1)),
        StoredMessage(kind, "r", "add", arguments(amount=2, note="x")),
        StoredMessage(kind, "q", "add", arguments(amount=3)),
    )
    assert result.has_effects


def test_a_message_alone_leaves_state_and_version() -> None:
    it = activation()
    result = run(lambda self: self.context.send(other(self).add, 1), it)
    assert (result.status, result.changed, result.state) == (Status.OK, False, None)
    assert result.has_effects
    assert (it.seq, it.stored()) == (0, StoredEntity())


def test_a_message_goes_with_the_change_of_its_turn_and_not_with_the_next() -> None:
    it = activation()

    def work(self: Any) -> None:
        self.count += 1
        self.context.send(other(self).add, 1)

    result = run(work, it)
    assert result.changed
    assert len(result.messages) == 1
    assert nothing_of(run(nothing, it))


async def test_async_handlers_send_too() -> None:
    it = activation()
    WORK["it"] = lambda self: self.context.send(other(self).add, 1)
    handler = it.kind.handlers["do_slowly"]
    result = await it.run_async(handler, handler.encode_arguments(("it",), {}), Turn(0, 1.0, sends_max=1))
    assert len(result.messages) == 1


def test_a_reference_that_was_stored_is_as_good_as_one_from_the_context() -> None:
    """It travels as app, kind and ID; one of another app is refused."""
    result = run(lambda self: self.context.send(unpickled("shop").add, 5))
    assert result.messages == (StoredMessage("test-sending.post", "q", "add", arguments(amount=5)),)
    error = raised(lambda self: self.context.send(unpickled("bank").add, 5))
    assert "of another app; an entity of 'shop'" in str(error)


def test_an_entity_may_send_to_itself() -> None:
    result = run(lambda self: self.context.send(other(self, self.context.id).add, 1))
    assert result.messages[0].id == "p"


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [
        (lambda self: self.context.send(other(self).add, "x"), atoll.InvalidCommand, "argument amount"),
        (lambda self: self.context.send(other(self).add), atoll.InvalidCommand, "amount is missing"),
        (lambda self: self.context.send(other(self).add, 1, colour=2), atoll.InvalidCommand, "no argument colour"),
        (lambda self: self.context.send(other(self).peek, "it"), TypeError, "takes a command of a reference"),
        (lambda self: self.context.send(self.add, 1), TypeError, "takes a command of a reference"),
        (lambda self: self.context.send(other(self).add.tell, 1), TypeError, "takes a command of a reference"),
        (lambda self: self.context.send(other(self), 1), TypeError, "takes a command of a reference"),
        (lambda self: self.context.send(other(self).add.using(command_id="x"), 1), TypeError, "takes none"),
        (lambda self: self.context.send(other(self).add.using(timeout=1), 1), TypeError, "takes none"),
        (lambda self: self.context.send(other(self).add.using(fail_fast=True), 1), TypeError, "takes none"),
    ],
)
def test_what_is_no_message_is_refused_where_it_is_sent(work: Any, error: type[Exception], said: str) -> None:
    found = raised(work)
    assert type(found) is error
    assert said in str(found)


# ---- timers


def due(delay: timedelta = SECOND) -> int:
    return NOW_MS + delay // timedelta(milliseconds=1)


def test_a_timer_is_set_for_a_delay_or_a_time() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)

    def work(self: Any) -> None:
        self.context.schedule("once", SECOND, self.add, 3)
        self.context.schedule("at", at, self.add, amount=4, note="x")
        self.context.schedule("often", timedelta(), self.add, 5, every=timedelta(minutes=1))
        self.context.schedule("each", SECOND, self.add, 6, every=timedelta(milliseconds=10), missed="catch_up")

    result = run(work)
    assert result.timers == (
        StoredTimer("once", due(), "add", arguments(amount=3)),
        StoredTimer("at", int(at.timestamp()) * 1000, "add", arguments(amount=4, note="x")),
        StoredTimer("often", NOW_MS, "add", arguments(amount=5), every_ms=60_000),
        StoredTimer("each", due(), "add", arguments(amount=6), every_ms=10, catch_up=True),
    )
    assert (result.timers_gone, result.changed, result.has_effects) == ((), False, True)


def test_the_last_word_on_a_name_counts() -> None:
    """M10: a new schedule takes the place of the old one, a cancel takes it away; both only with the turn."""

    def work(self: Any) -> None:
        schedule, cancel = self.context.schedule, self.context.cancel
        schedule("twice", SECOND, self.add, 1)
        schedule("twice", SECOND * 2, self.add, 2)
        schedule("set, cancelled", SECOND, self.add, 1)
        cancel("set, cancelled")
        cancel("cancelled, set")
        schedule("cancelled, set", SECOND, self.add, 3)
        cancel("unknown")
        cancel("unknown")

    result = run(work)
    assert result.timers == (
        StoredTimer("twice", due(SECOND * 2), "add", arguments(amount=2)),
        StoredTimer("cancelled, set", due(), "add", arguments(amount=3)),
    )
    assert result.timers_gone == ("set, cancelled", "unknown")
    assert run(lambda self: self.context.cancel("x")).has_effects


def test_a_deletion_takes_the_timers_before_it_and_leaves_those_after_it() -> None:
    """M20: `deleted` clears all timers of the entity, so only what comes after is said; messages leave all the same."""
    it = activation()

    def work(self: Any) -> None:
        self.context.send(other(self).add, 1)
        self.context.schedule("before", SECOND, self.add, 1)
        self.context.schedule("both", SECOND, self.add, 1)
        self.context.cancel("gone before")
        self.context.delete()
        self.context.schedule("both", SECOND, self.add, 2)
        self.context.schedule("after", SECOND, self.add, 3)
        self.context.cancel("gone after")

    result = run(work, it)
    assert (result.deleted, result.changed, it.seq) == (True, True, 1)
    assert [(timer.name, timer.arguments) for timer in result.timers] == [
        ("both", arguments(amount=2)),
        ("after", arguments(amount=3)),
    ]
    assert result.timers_gone == ("gone after",)
    assert len(result.messages) == 1


def test_a_tick_knows_for_when_it_was_set() -> None:
    seen: list[Any] = []

    def work(self: Any) -> None:
        seen.append(self.context.due)

    run(work, due_ms=1_599_999_999_001)
    run(work)
    assert seen == [datetime(2020, 9, 13, 12, 26, 39, 1000, tzinfo=UTC), None]


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [
        (lambda self: self.context.schedule("x", SECOND, self.add, "x"), atoll.InvalidCommand, "argument amount"),
        (lambda self: self.context.schedule("x", SECOND, self.add), atoll.InvalidCommand, "amount is missing"),
        (lambda self: self.context.schedule("x", SECOND, self.peek, "it"), TypeError, "a command of test-sending.post"),
        (lambda self: self.context.schedule("x", SECOND, other(self).add, 1), TypeError, "its own entity"),
        (lambda self: self.context.schedule("x", SECOND, Diary.add, 1), TypeError, "its own entity"),
        (lambda self: self.context.schedule("x", SECOND, self._atoll_stage, 1), TypeError, "its own entity"),
        (lambda self: self.context.schedule("x", 5, self.add, 1), TypeError, "timedelta"),
        (lambda self: self.context.schedule("x", datetime(2030, 1, 1), self.add, 1), ValueError, "naive"),  # noqa: DTZ001 - the mistake
        (lambda self: self.context.schedule("x", -SECOND, self.add, 1), ValueError, "for later"),
        (lambda self: self.context.schedule("x", SECOND, self.often, every=5), TypeError, "by its position"),
        (lambda self: self.context.schedule("x", SECOND, self.add, 1, every=SECOND / 200), ValueError, "ms_min"),
        (lambda self: self.context.schedule("x", SECOND, self.add, 1, missed="catch_up"), ValueError, "give every"),
        (
            lambda self: self.context.schedule("x", SECOND, self.add, 1, every=SECOND, missed="all"),
            ValueError,
            "missed",
        ),
        (lambda self: self.context.schedule("", SECOND, self.add, 1), atoll.InvalidCommand, "1 to 255 bytes"),
        (lambda self: self.context.schedule("é" * 128, SECOND, self.add, 1), atoll.InvalidCommand, "has 256"),
        (lambda self: self.context.schedule("\ud800", SECOND, self.add, 1), atoll.InvalidCommand, "surrogate"),
        (lambda self: self.context.schedule(5, SECOND, self.add, 1), atoll.InvalidCommand, "a timer's name is a str"),
        (lambda self: self.context.cancel(""), atoll.InvalidCommand, "1 to 255 bytes"),
    ],
)
def test_what_is_no_timer_is_refused_where_it_is_set(work: Any, error: type[Exception], said: str) -> None:
    found = raised(work)
    assert type(found) is error
    assert said in str(found)


def test_a_parameter_named_as_an_option_is_given_by_position() -> None:
    result = run(lambda self: self.context.schedule("x", SECOND, self.often, 5))
    assert result.timers[0].arguments == arguments(every=5)


def test_a_command_of_a_base_class_can_be_scheduled_and_an_overridden_one_is_ones_own() -> None:
    class Busy(Post, kind="test-sending.busy"):
        @atoll.command
        def often(self, every: int) -> None: ...

    def work(self: Any) -> None:
        self.context.schedule("a", SECOND, self.add, 1)
        self.context.schedule("b", SECOND, self.often, 1)

    assert [timer.method for timer in run(work, activation(Busy)).timers] == ["add", "often"]
    overridden = raised(lambda self: self.context.schedule("b", SECOND, super(Busy, self).often, 1), activation(Busy))
    assert isinstance(overridden, TypeError)


# ---- no trace


def everything(self: Any) -> None:
    self.context.send(other(self).add, 1)
    self.context.schedule("x", SECOND, self.add, 1)
    self.context.cancel("y")
    if isinstance(self, Diary):
        self.emit(Noted("x"))
    else:
        self.count += 1


@pytest.mark.parametrize("cls", [Post, Diary])
@pytest.mark.parametrize("error", [ZeroDivisionError(), atoll.Rejected("no"), atoll.Overloaded("there")])
def test_a_failed_handler_leaves_no_trace_in_outbox_and_timers(cls: type, error: Exception) -> None:
    """M09: as before, also when it raised after emit, send and schedule; and nothing of it turns up in a later turn."""
    it = activation(cls)

    def work(self: Any) -> None:
        everything(self)
        raise error

    result = run(work, it)
    assert nothing_of(result)
    assert result.status is (Status.REJECTED if type(error) is atoll.Rejected else Status.HANDLER_FAILED)
    assert (it.seq, it.stored()) == (0, StoredEntity())
    assert nothing_of(run(nothing, it))
    result = run(everything, it)
    assert (len(result.messages), len(result.timers), result.timers_gone, it.seq) == (1, 1, ("y",), 1)


def test_a_turn_that_cannot_be_kept_leaves_no_trace_either() -> None:
    """M09: its state is over the limit, and what it sent does not leave without it."""

    class Stuffed(atoll.Entity, kind="test-sending.stuffed"):
        text: str = ""

        @atoll.command
        def do(self, what: str) -> None:
            WORK[what](self)

    it = activation(Stuffed, state_bytes_max=100)

    def work(self: Any) -> None:
        self.context.send(other(self).add, 1)
        self.text = "x" * 200

    result = run(work, it)
    assert result.status is Status.HANDLER_FAILED
    assert nothing_of(result)


def test_an_outbox_without_room_refuses_the_command() -> None:
    """M09, M14: not a failure of the handler: the caller may repeat it, and it leaves no trace."""
    it = activation()

    def work(self: Any) -> None:
        self.count += 1
        for amount in range(101):
            self.context.send(other(self).add, amount)

    result = run(work, it)
    assert result.status is Status.OVERLOADED
    assert b"Post.do: the outbox is full: it has room for 100 messages" in result.payload
    assert result.error is None
    assert nothing_of(result)
    assert (it.seq, it.fields()) == (0, {"count": 0})
    assert isinstance(RAISED[-1], atoll.Overloaded)


def test_a_handler_may_do_with_the_room_that_there_is() -> None:
    def work(self: Any) -> None:
        try:
            for amount in range(101):
                self.context.send(other(self).add, amount)
        except atoll.Overloaded:
            self.count = 100

    result = run(work)
    assert (result.status, len(result.messages), result.changed) == (Status.OK, 100, True)


def test_being_refused_by_another_entity_is_no_full_outbox() -> None:
    """Only what `send` raised says that nothing was done; what an ask raised is the handler's failure."""

    def work(_: Any) -> None:
        raise atoll.Overloaded("somebody else is")

    assert run(work).status is Status.HANDLER_FAILED


# ---- where there is nothing to send


@pytest.mark.parametrize(
    "work",
    [
        lambda self: self.context.send(other(self).add, 1),
        lambda self: self.context.schedule("x", SECOND, self.add, 1),
        lambda self: self.context.cancel("x"),
    ],
    ids=["send", "schedule", "cancel"],
)
def test_only_durable_commands_send_and_set_timers(work: Any) -> None:
    """Queries, hooks, kinds in memory only, and what a handler left behind have nothing to commit them with."""
    assert "in a query; only a command writes" in str(raised(work, method="peek"))
    found = raised(work, activation(Fleeting))
    assert type(found) is RuntimeError
    assert "durable=False has no outbox" in str(found)

    left: list[Any] = []
    run(left.append)
    (entity,) = left
    with pytest.raises(RuntimeError, match="context is there while"):
        work(entity)


async def test_a_hook_sends_nothing() -> None:
    class Eager(Post, kind="test-sending.eager"):
        async def on_activate(self) -> None:
            self.context.send(other(self).add, 1)

    with pytest.raises(atoll.HandlerFailed, match="in on_activate; only a command writes"):
        await activation(Eager).on_activate(Turn(0, 1.0, sends_max=9))


def test_a_context_that_outlived_its_turn_stages_nothing() -> None:
    kept: list[Any] = []
    run(lambda self: kept.extend([self.context, other(self).add, self.add]))
    context, message, command = kept
    for late in (
        lambda: context.send(message, 1),
        lambda: context.schedule("x", SECOND, command, 1),
        lambda: context.cancel("x"),
    ):
        with pytest.raises(RuntimeError, match="after the turn"):
            late()


# ---- bounds


def sends(count: int, note: str = "") -> Any:
    def work(self: Any) -> None:
        for amount in range(count):
            self.context.send(other(self).add, amount, note)

    return work


def sets(count: int, note: str = "") -> Any:
    def work(self: Any) -> None:
        for amount in range(count):
            self.context.schedule(str(amount), SECOND, self.add, amount, note)

    return work


@pytest.mark.parametrize("work", [sends, sets])
def test_arguments_are_bounded_one_by_one_and_together(work: Any) -> None:
    """J11: over the limit is refused before anything is written."""
    limits = {"arguments_bytes_max": 100, "outgoing_bytes_max": 500}
    result = run(work(5, "x" * 70), activation(**limits))
    assert len(result.messages) + len(result.timers) == 5
    found = raised(work(1, "x" * 100), activation(**limits))
    assert type(found) is atoll.InvalidCommand
    assert "more than arguments_bytes_max (100)" in str(found)
    assert "more than outgoing_bytes_max (500)" in str(raised(work(6, "x" * 70), activation(**limits)))


@pytest.mark.parametrize("work", [sends, sets])
def test_a_turn_sends_and_sets_only_so_many(work: Any) -> None:
    limits = {"messages_per_turn_max": 3, "timers_per_turn_max": 3}
    result = run(work(3), activation(**limits))
    assert len(result.messages) + len(result.timers) == 3
    assert "_per_turn_max (3)" in str(raised(work(4), activation(**limits)))


def test_cancelled_timers_count_and_a_name_counts_once() -> None:
    def work(self: Any) -> None:
        for _ in range(5):
            self.context.schedule("a", SECOND, self.add, 1)
            self.context.cancel("b")
            self.context.cancel("a")

    it = activation(timers_per_turn_max=2)
    assert run(work, it).timers_gone == ("b", "a")

    def one_more(self: Any) -> None:
        work(self)
        self.context.cancel("c")

    assert "timers_per_turn_max (2)" in str(raised(one_more, it))


def test_a_timer_that_was_replaced_or_deleted_counts_no_bytes() -> None:
    def work(self: Any) -> None:
        for _ in range(10):
            self.context.schedule("a", SECOND, self.add, 1, "x" * 50)
        self.context.cancel("a")
        self.context.schedule("b", SECOND, self.add, 1, "x" * 50)
        self.context.delete()
        self.context.send(other(self).add, 1, "x" * 50)

    assert run(work, activation(outgoing_bytes_max=80)).status is Status.OK


def test_a_refused_schedule_leaves_the_earlier_one() -> None:
    def work(self: Any) -> None:
        self.context.schedule("a", SECOND, self.add, 1)
        with pytest.raises(atoll.InvalidCommand):
            self.context.schedule("a", SECOND, self.add, 2, "x" * 100)

    (timer,) = run(work, activation(arguments_bytes_max=50)).timers
    assert timer.arguments == arguments(amount=1)


@pytest.mark.parametrize(
    "settings", [{"messages_per_turn_max": 0}, {"messages_per_turn_max": 65_536}, {"timer_every_ms_min": 0}]
)
def test_bounds_that_cannot_be_are_refused(settings: Any) -> None:
    """A message's place in its record has 16 bits; a timer that repeats every 0 ms would be one that does not."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        atoll.Settings.load(settings, {})
