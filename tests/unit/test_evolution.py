"""Stored events and states outlive the classes that wrote them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import pytest

import atoll
from atoll.actors.activation import Activation
from atoll.actors.kind import kind_of
from atoll.actors.stored import StoredEntity, StoredEvent, StoredState
from atoll.actors.turn import Turn


@dataclass(frozen=True)
class Deposited:
    """Version 1 had `cents`, version 2 `euros` as text, version 3 has what stands here."""

    amount: float
    tags: list[str] = field(default_factory=list)


class Account(atoll.EventSourced):
    balance: float = 0.0
    seen: int = 0

    @atoll.command
    def deposit(self, amount: float) -> float:
        self.emit(Deposited(amount))
        return self.balance

    @atoll.apply
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


@atoll.upcast(Deposited, version=2)
def _(old: dict[str, Any]) -> dict[str, Any]:
    return {"amount": float(old["euros"])}


@atoll.upcast(Deposited, version=1)
def _(old: dict[str, Any]) -> dict[str, Any]:
    return {"euros": str(old["cents"] / 100)}


class Cart(atoll.Entity):
    """Version 1 held one `item`."""

    items: list[str] = atoll.field(default_factory=list)
    note: str = "none"


@atoll.upcast(Cart, version=1)
def _(old: dict[str, Any]) -> dict[str, Any]:
    item = old.pop("item")
    if item == "broken":
        return None  # type: ignore[return-value]
    return {**old, "items": [item]}


def packed(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


def activated(cls: type, stored: StoredEntity) -> Activation:
    return Activation(kind_of(cls), "x", stored, atoll.Settings())


def test_events_of_every_earlier_version_are_lifted_one_by_one() -> None:
    events = (
        StoredEvent("Deposited", 1, packed(cents=150)),
        StoredEvent("Deposited", 2, packed(euros="2.5")),
        StoredEvent("Deposited", 3, packed(amount=4.0)),
    )
    assert activated(Account, StoredEntity(3, None, events)).fields()["balance"] == 8.0


def test_new_events_carry_the_current_version() -> None:
    it = activated(Account, StoredEntity())
    handler = it.kind.handlers["deposit"]
    (event,) = it.run(handler, handler.encode_arguments((1.0,), {}), Turn(0, 1.0)).events
    assert event == StoredEvent("Deposited", 3, packed(amount=1.0, tags=[]))


def test_states_are_lifted_and_stored_anew_only_when_they_change() -> None:
    it = activated(Cart, StoredEntity(4, StoredState(1, packed(item="apple", colour="red"))))
    assert it.fields() == {"items": ["apple"], "note": "none"}
    assert it.stored().state == StoredState(2, packed(items=["apple"], note="none"))


def test_an_undone_turn_of_a_lifted_snapshot_comes_back_right() -> None:
    old = StoredState(1, packed(balance=5.0, gone=1))
    it = activated(Account, StoredEntity(9, old, (StoredEvent("Deposited", 1, packed(cents=100)),)))
    it.rewind()
    assert it.fields() == {"balance": 6.0, "seen": 0}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            StoredState(3, packed()),
            "was stored by version 3 of its class, and this code knows 1 to 2: run the newer code",
        ),
        (StoredState(1, packed()), "KeyError: 'item'"),
        (StoredState(1, packed(item="broken")), "the upcast of Cart from version 1 returned no dict"),
        (StoredState(1, packed(item=5)), r"Expected `str`, got `int` - at `\$.items"),
    ],
)
def test_what_cannot_be_lifted_is_reported_with_its_place(state: StoredState, said: str) -> None:
    """J14"""
    with pytest.raises(atoll.CorruptRecord, match="Cart/x: its stored state") as caught:
        activated(Cart, StoredEntity(1, state))
    assert caught.match(said)


def test_a_gap_in_the_upcasts_is_found_when_the_app_is_made() -> None:
    @dataclass(frozen=True)
    class Moved:
        x: int

    class Piece(atoll.EventSourced):
        @atoll.apply
        def _moved(self, event: Moved) -> None: ...

    @atoll.upcast(Moved, version=2)
    def _(old: dict[str, Any]) -> dict[str, Any]:
        return old

    with pytest.raises(TypeError, match=r"Moved has an upcast from version 2, but none from 1"):
        atoll.App("game", entities=[Piece])
    with pytest.raises(TypeError, match=r"register @atoll.upcast\(Moved, version=1\)"):
        atoll.testing.EntityKit(Piece)


def test_an_upcast_is_registered_once_for_a_class_and_a_version() -> None:
    with pytest.raises(TypeError, match="registered twice"):
        atoll.upcast(Cart, version=1)(lambda old: old)
    for version in (0, -1, True, "1"):
        with pytest.raises(TypeError, match="1 or more"):
            atoll.upcast(Cart, version=version)
    with pytest.raises(TypeError, match="takes an event class or an entity class"):
        atoll.upcast("Cart", version=1)


def test_a_renamed_event_class_keeps_its_stored_name() -> None:
    """`__event_name__` is what is stored; a subclass does not inherit it."""

    @dataclass(frozen=True)
    class MoneyArrived:
        __event_name__: ClassVar[str] = "Deposited"
        amount: int

    @dataclass(frozen=True)
    class MuchArrived(MoneyArrived):
        pass

    class Till(atoll.EventSourced):
        total: int = 0

        @atoll.apply
        def _arrived(self, event: MoneyArrived | MuchArrived) -> None:
            self.total += event.amount

    events = (StoredEvent("Deposited", 1, packed(amount=1)), StoredEvent("MuchArrived", 1, packed(amount=2)))
    assert activated(Till, StoredEntity(2, None, events)).fields() == {"total": 3}
