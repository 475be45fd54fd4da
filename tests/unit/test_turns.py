"""Turns of plain entities: what is kept, what is forgotten, and what the caller hears."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.actors.activation import Activation
from atoll.actors.calls import Status
from atoll.actors.kind import kind_of
from atoll.actors.stored import StoredEntity, StoredState
from atoll.actors.turn import Turn, TurnResult

NOW = Turn(now_ms=1_600_000_000_123, deadline_s=2.5)


class Full(atoll.Rejected):
    limit: int


@dataclass
class Item:
    name: str
    count: int = 1


class Box(atoll.Entity):
    items: list[Item] = atoll.field(default_factory=list)
    tags: set[str] = atoll.field(default_factory=set)
    note: str = ""
    extra: Any = None
    _cache: int = 0

    @atoll.command
    def put(self, name: str, count: int = 1) -> int:
        self.items.append(Item(name, count))
        return len(self.items)

    @atoll.command
    def put_then(self, name: str, what: str) -> None:
        """Change the state in every way, then fail."""
        self.items.append(Item(name))
        self.tags.add(name)
        self.note = name
        self._cache += 1
        if what == "reject":
            raise Full(limit=3)
        if what == "cancel":
            raise asyncio.CancelledError
        if what == "exit":
            raise SystemExit(3)
        if what == "del":
            del self.note
            return
        raise ZeroDivisionError("by " + what)

    @atoll.command
    def look(self) -> int:
        return len(self.items)

    @atoll.command
    def hold(self, what: str) -> None:
        self.extra = {"object": object(), "big": "x" * 5000, "wrong": [1]}[what]
        if what == "wrong":
            self.note = 5

    @atoll.command
    def stray(self, name: str) -> None:
        setattr(self, name, 1)

    @atoll.command
    def answer(self, what: str) -> Any:
        self.note = "answered"
        return {"object": object(), "big": "x" * 5000}[what]

    @atoll.command
    def wipe(self) -> int:
        self.context.delete()
        return len(self.items)

    @atoll.command
    def leave(self, fail: bool = False) -> None:
        self.context.passivate()
        if fail:
            raise ValueError

    @atoll.query
    def count(self) -> int:
        return len(self.items)

    @atoll.query
    def cheat(self, how: str) -> int:
        if how == "state":
            self.items.clear()
        elif how == "delete":
            self.context.delete()
        return 0

    @atoll.command
    def told(self) -> list[Any]:
        context = self.context
        again = self.context
        return [context.id, context.now, context.deadline, context.now == again.now, context.resources]


def activation(stored: StoredEntity | None = None, **settings: int) -> Activation:
    asked, _ = atoll.Settings.load(settings, {})
    return Activation(kind_of(Box), "b", stored or StoredEntity(), asked, resources="pool")


def run(it: Activation, name: str, *args: Any) -> TurnResult:
    handler = it.kind.handlers[name]
    return it.run(handler, handler.encode_arguments(args, {}), NOW)


def value(result: TurnResult) -> Any:
    assert result.status is Status.OK, result.payload
    return msgspec.msgpack.decode(result.payload)


def message(result: TurnResult) -> str:
    assert result.status is not Status.OK
    assert not result.changed
    assert (result.state, result.events, result.deleted) == (None, (), False)
    return result.payload.decode()


# ---- kept


def test_a_changed_entity_carries_its_whole_state_and_the_next_version() -> None:
    it = activation()
    result = run(it, "put", "apple", 2)
    assert value(result) == 1
    assert result.changed
    assert it.seq == 1
    assert result.state is not None
    assert result.state.version == 1
    assert msgspec.msgpack.decode(result.state.data) == {
        "items": [{"name": "apple", "count": 2}],
        "tags": [],
        "note": "",
        "extra": None,
    }
    assert it.stored() == StoredEntity(1, result.state)


def test_a_command_that_changed_nothing_has_nothing_to_commit() -> None:
    it = activation()
    run(it, "put", "apple")
    result = run(it, "look")
    assert value(result) == 1
    assert not result.changed
    assert result.state is None
    assert it.seq == 1


def test_the_state_comes_back_from_what_was_stored() -> None:
    it = activation()
    run(it, "put", "apple")
    run(it, "put", "pear")
    again = activation(it.stored())
    assert again.seq == 2
    assert again.fields() == it.fields()
    assert value(run(again, "put", "plum")) == 3


def test_a_set_that_comes_back_in_another_order_is_no_change() -> None:
    """A query of a recovered entity must not be taken for a writer because sets have no order."""
    names = [f"tag{n}" for n in range(40)]
    data = msgspec.msgpack.encode({"tags": names[::-1]})
    it = activation(StoredEntity(3, StoredState(1, data)))
    assert value(run(it, "count")) == 0
    assert not run(it, "look").changed


def test_an_entity_that_was_never_changed_stores_nothing() -> None:
    it = activation()
    run(it, "look")
    assert it.stored() == StoredEntity()


def test_a_wish_to_leave_memory_is_told_only_when_the_command_succeeded() -> None:
    it = activation()
    assert run(it, "leave").passivate
    assert not run(it, "leave", True).passivate
    assert not run(it, "look").passivate


# ---- forgotten


@pytest.mark.parametrize("what", ["reject", "zero", "cancel", "del"])
def test_a_failed_handler_leaves_no_trace(what: str) -> None:
    """M09: state is as before, whatever was changed in place, and the entity goes on; M04: so it may be tried again."""
    it = activation()
    run(it, "put", "apple")
    before = it.stored()
    result = run(it, "put_then", "pear", what)
    assert result.status is (Status.REJECTED if what == "reject" else Status.HANDLER_FAILED)
    assert not result.changed
    assert it.stored() == before
    assert it.seq == 1
    assert value(run(it, "put", "plum")) == 2


def test_a_failure_is_told_with_its_name_and_kept_for_the_log() -> None:
    result = run(activation(), "put_then", "pear", "zero")
    assert message(result) == "Box.put_then raised ZeroDivisionError: by zero"
    assert isinstance(result.error, ZeroDivisionError)


def test_an_exit_goes_through_and_still_leaves_no_trace() -> None:
    it = activation()
    with pytest.raises(SystemExit):
        run(it, "put_then", "pear", "exit")
    assert it.fields()["items"] == []
    assert value(run(it, "put", "plum")) == 1


def test_underscore_names_are_neither_stored_nor_undone() -> None:
    it = activation()
    run(it, "put_then", "pear", "zero")
    assert it._entity._cache == 1
    assert "_cache" not in it.fields()


@pytest.mark.parametrize("what", ["object", "wrong"])
def test_a_state_that_could_not_be_read_back_is_not_kept(what: str) -> None:
    """What is committed can be activated again: a value of another type is the handler's failure, named by field."""
    it = activation()
    result = run(it, "hold", what)
    assert result.status is Status.HANDLER_FAILED
    assert ("extra" if what == "object" else "note") in message(result)
    assert it.stored() == StoredEntity()
    assert value(run(it, "put", "plum")) == 1


def test_a_state_over_its_limit_is_not_kept() -> None:
    """J11: over the limit is refused before anything is written."""
    it = activation(state_bytes_max=1000)
    result = run(it, "hold", "big")
    assert "state_bytes_max (1000)" in message(result)
    assert it.stored() == StoredEntity()
    assert value(run(it, "put", "plum")) == 1


@pytest.mark.parametrize("what", ["object", "big"])
def test_a_result_that_cannot_be_sent_keeps_nothing(what: str) -> None:
    it = activation(reply_bytes_max=1000)
    result = run(it, "answer", what)
    assert ("reply_bytes_max (1000)" if what == "big" else "returned what is not") in message(result)
    assert it.fields()["note"] == ""
    assert it.seq == 0


def test_an_attribute_that_is_no_state_is_refused_since_it_would_be_lost() -> None:
    it = activation()
    assert "set total, which is not a state field: annotate it, or name it _total" in message(run(it, "stray", "total"))
    assert value(run(it, "look")) == 0
    assert value(run(it, "stray", "_total")) is None


def test_a_query_that_changes_state_is_undone_and_refused() -> None:
    it = activation()
    run(it, "put", "apple")
    assert "Box.cheat changed the state, and a query only reads" in message(run(it, "cheat", "state"))
    assert "context.delete() in a query" in message(run(it, "cheat", "delete"))
    assert value(run(it, "count")) == 1


# ---- never run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (b"\x80", "the argument name is missing"),
        (msgspec.msgpack.encode({"name": 5}), "argument name: Expected `str`, got `int`"),
        (msgspec.msgpack.encode({"name": "x", "colour": 1}), "has no argument colour"),
        (msgspec.msgpack.encode(["x"]), "do not decode"),
        (b"", "do not decode"),
        (b"\xc1", "do not decode"),
        (b"\x81\xa4name" + b"\x91" * 100_000, "argument name"),
        (b"\x81\xa1x" + b"\x91" * 100_000, "has no argument x"),
        (b"\x81\xa4name\xdb\xff\xff\xff\xff", "do not decode"),
    ],
)
def test_arguments_that_do_not_fit_never_reach_the_handler(arguments: bytes, said: str) -> None:
    """R03: also not a wall of brackets, or a length that is not there."""
    it = activation()
    result = it.run(it.kind.handlers["put"], arguments, NOW)
    assert result.status is Status.INVALID_COMMAND
    assert said in message(result)
    assert it.stored() == StoredEntity()


@given(st.binary(max_size=40))
def test_random_bytes_never_harm_an_entity(noise: bytes) -> None:
    """R03"""
    it = activation()
    result = it.run(it.kind.handlers["put"], noise, NOW)
    assert result.status in (Status.OK, Status.INVALID_COMMAND)
    assert value(run(it, "look")) in (0, 1)


# ---- deletion


def test_a_deleted_entity_begins_from_defaults_and_its_version_goes_on() -> None:
    """J09, M20: deleted then written again continues the version, never restarts it."""
    it = activation()
    run(it, "put", "apple")
    result = run(it, "wipe")
    assert value(result) == 1  # what the handler saw is the state before
    assert (result.changed, result.deleted, result.state) == (True, True, None)
    assert it.seq == 2
    assert it.stored() == StoredEntity(2)
    again = activation(it.stored())
    assert not run(again, "look").changed
    result = run(again, "put", "pear")
    assert (value(result), again.seq, result.deleted) == (1, 3, False)


def test_a_deletion_is_forgotten_with_its_turn() -> None:
    class Fragile(atoll.Entity):
        count: int = 0

        @atoll.command
        def add(self) -> None:
            self.count += 1

        @atoll.command
        def wipe(self) -> None:
            self.context.delete()
            raise ValueError

    it = Activation(kind_of(Fragile), "f", StoredEntity(), atoll.Settings())
    run(it, "add")
    assert not run(it, "wipe").deleted
    assert it.fields() == {"count": 1}


# ---- kinds that are not stored


class Presence(atoll.Entity, durable=False):
    seen: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def see(self, who: str, fail: bool = False) -> int:
        self.seen.append(who)
        if fail:
            raise ValueError
        return len(self.seen)

    @atoll.command
    def wipe(self) -> None:
        self.context.delete()


def test_a_kind_in_memory_only_commits_nothing_and_still_undoes() -> None:
    """M09 holds there too."""
    it = Activation(kind_of(Presence), "p", StoredEntity(), atoll.Settings())
    assert value(run(it, "see", "ann")) == 1
    assert run(it, "see", "bob", True).status is Status.HANDLER_FAILED
    result = run(it, "see", "cid")
    assert (value(result), result.changed, result.state) == (2, False, None)
    assert it.stored() == StoredEntity()
    result = run(it, "wipe")
    assert (result.changed, result.deleted) == (False, False)
    assert value(run(it, "see", "dan")) == 1


# ---- what a handler knows


def test_the_context_tells_id_time_deadline_and_resources() -> None:
    told = value(run(activation(), "told"))
    now = datetime(2020, 9, 13, 12, 26, 40, 123000, tzinfo=UTC)
    assert told == ["b", now, now.replace(second=42, microsecond=623000), True, "pool"]


def test_a_deadline_beyond_time_is_the_end_of_time() -> None:
    it = activation()
    handler = it.kind.handlers["told"]
    result = it.run(handler, b"\x80", Turn(0, float("inf")))
    assert value(result)[2].year == 9999


def test_there_is_no_context_outside_a_turn() -> None:
    """Neither on the entity, nor for what a handler left behind."""
    kept: list[Any] = []

    class Leaky(atoll.Entity):
        @atoll.command
        def leak(self) -> None:
            kept.extend([self, self.context])

    it = Activation(kind_of(Leaky), "x", StoredEntity(), atoll.Settings())
    run(it, "leak")
    entity, context = kept
    with pytest.raises(RuntimeError, match="context is there while a handler"):
        _ = entity.context
    with pytest.raises(RuntimeError, match="after the turn"):
        context.delete()
    with pytest.raises(RuntimeError, match="after the turn"):
        context.passivate()
    assert context.id == "x"


def test_a_handler_called_on_self_is_refused_with_advice() -> None:
    """The turn, its ID and its undoing belong to one command; the name itself stays usable as a value."""

    class Two(atoll.Entity):
        @atoll.command
        def one(self) -> int:
            return 1

        @atoll.command
        def two(self) -> str:
            name = self.one.__name__
            self.one()
            return name

    it = Activation(kind_of(Two), "x", StoredEntity(), atoll.Settings())
    assert "Two.one is a handler" in message(run(it, "two"))
    assert "plain method" in message(run(it, "two"))


# ---- stored data that is not as it should be


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (StoredState(1, b"\xc1"), "b: its stored state cannot be used"),
        (StoredState(1, msgspec.msgpack.encode({"note": 5})), "note"),
        (StoredState(2, b"\x80"), "knows 1 to 1: run the newer code"),
        (StoredState(0, b"\x80"), "version 0"),
    ],
)
def test_stored_state_that_does_not_decode_is_reported_with_its_place(state: StoredState, said: str) -> None:
    """J14: named by entity, and never read as something else."""
    with pytest.raises(atoll.CorruptRecord, match="Box/") as caught:
        activation(StoredEntity(1, state))
    assert said in str(caught.value)


def test_long_and_odd_messages_are_cut_and_sent_all_the_same() -> None:
    class Loud(atoll.Entity):
        @atoll.command
        def shout(self, how: str) -> None:
            class Mute(Exception):
                def __str__(self) -> str:
                    raise ValueError

            raise {"long": ValueError("x" * 10_000), "odd": ValueError("\ud800"), "mute": Mute()}[how]

    it = Activation(kind_of(Loud), "x", StoredEntity(), atoll.Settings())
    assert len(message(run(it, "shout", "long"))) < 2100
    assert "\\ud800" in message(run(it, "shout", "odd"))
    assert "its text cannot be made" in message(run(it, "shout", "mute"))
