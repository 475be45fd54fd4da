"""What an entity class may be: every mistake shows where the class is written, and says which member it is."""

from __future__ import annotations

import abc
import enum
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import msgspec
import pytest

import atoll
from atoll.actors.kind import kind_of

if TYPE_CHECKING:
    from somewhere import Unseen


class Plain:
    """A class that msgspec knows nothing of."""


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class WithPlain:
    inner: dict[str, list[Plain]]


@dataclass(frozen=True)
class Opened:
    owner: str


def test_a_class_is_a_kind_named_after_it() -> None:
    """The default kind is the class's name; `kind=` keeps it when the class is renamed."""

    class Cart(atoll.Entity):
        pass

    class Renamed(atoll.Entity, kind="cart.v1"):
        pass

    assert kind_of(Cart).name == "Cart"
    assert kind_of(Cart).entity_class is Cart
    assert kind_of(Renamed).name == "cart.v1"
    assert (kind_of(Cart).durable, kind_of(Cart).event_sourced) == (True, False)


@pytest.mark.parametrize("name", ["", "a b", "1st", "x" * 129, "é"])
def test_a_kind_that_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"Cart: .* cannot name a kind"):

        class Cart(atoll.Entity, kind=name):
            pass


def test_not_durable_is_inherited_and_can_be_taken_back() -> None:
    class Presence(atoll.Entity, durable=False):
        pass

    class Room(Presence):
        pass

    class Ledger(Presence, durable=True):
        pass

    assert [kind_of(each).durable for each in (Presence, Room, Ledger)] == [False, False, True]


def test_an_event_sourced_kind_cannot_be_in_memory_only() -> None:
    with pytest.raises(TypeError, match=r"Account: .*durable=False use atoll\.Entity"):

        class Account(atoll.EventSourced, durable=False):
            pass


def test_state_is_what_is_annotated_and_public_inherited_ones_included() -> None:
    """Mixins and base entities bring their fields; ClassVar, Final, un-annotated and underscore names are none."""

    class Stamped:
        created: int = 1

    class Base(atoll.Entity):
        total: int = 2
        LIMIT: ClassVar[int] = 3
        MAXIMUM: Final = 4
        rate = 5
        _cache: Plain | None = None
        _seen: Unseen

    class Cart(Stamped, Base):
        items: dict[str, int] = atoll.field(default_factory=dict)
        total = 9  # another default for the inherited field

    kit = atoll.testing.EntityKit(Cart)
    assert kit.state == {"total": 9, "created": 1, "items": {}}


def test_every_type_of_msgspec_can_be_state() -> None:
    class Everything(atoll.Entity):
        flag: bool = False
        number: float = 0.5
        blob: bytes = b"\0"
        when: datetime | None = None
        key: uuid.UUID = uuid.UUID(int=7)
        price: Decimal = Decimal("1.50")
        colour: Colour = Colour.RED
        mode: Literal["a", "b"] = "a"
        lines: list[Line] = atoll.field(default_factory=list)
        point: Point = Point(1, 2)
        pair: tuple[int, str] = (1, "x")
        names: frozenset[str] = frozenset({"n"})
        either: int | str = 0
        anything: Any = None

    assert atoll.testing.EntityKit(Everything).state["point"] == Point(1, 2)


def test_a_default_is_copied_for_every_entity() -> None:
    """Two entities never share a list, also when the default was written as a plain value."""

    class Basket(atoll.Entity):
        items: list[int] = [1]  # noqa: RUF012 - the promise

        @atoll.command
        def add(self, item: int) -> None:
            self.items.append(item)

    kind = kind_of(Basket)
    first, second = kind.made(), kind.made()
    kind.set_defaults(first)
    kind.set_defaults(second)
    first.items.append(2)
    assert (first.items, second.items, Basket.items) == ([1, 2], [1], [1])


def test_a_field_without_default_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Cart\.owner has no default"):

        class Cart(atoll.Entity):
            owner: str


def test_a_default_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Cart\.count: the default 'none' .* int"):

        class Cart(atoll.Entity):
            count: int = "none"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Plain, "Plain"),
        (list[Plain], "Plain"),
        (dict[str, tuple[int, Plain]], "Plain"),
        (WithPlain, "Plain"),
        (object, "object"),
        (complex, "complex"),
        (list[int] | set[int], "union"),
    ],
)
def test_a_type_that_cannot_be_stored_is_refused_by_name(wanted: Any, said: str) -> None:
    """The message names class, field and type."""
    with pytest.raises(TypeError, match=rf"Bad\.thing: .*{said}"):
        type("Bad", (atoll.Entity,), {"__annotations__": {"thing": wanted}, "thing": None, "__module__": __name__})


def test_annotations_as_text_work_for_classes_inside_functions() -> None:
    """`from __future__ import annotations` (as in this module) with types that only exist in a running function."""

    class Money(msgspec.Struct, frozen=True):
        cents: int

    class Wallet(atoll.Entity):
        holds: Money = Money(5)

        @atoll.query
        def held(self, plus: Money) -> Money:
            return Money(self.holds.cents + plus.cents)

    handler = kind_of(Wallet).handlers["held"]
    assert handler.decode_arguments(handler.encode_arguments((Money(1),), {})) == (Money(1),)


def test_a_name_that_cannot_be_resolved_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match=r"Cart\.items: the annotation 'Unseen' .*TYPE_CHECKING"):

        class Cart(atoll.Entity):
            items: Unseen = None


@pytest.mark.parametrize("annotated", [True, False])
def test_the_reserved_name_is_refused_naming_class_and_member(annotated: bool) -> None:
    body: dict[str, Any] = {"context": 1, "__module__": __name__}
    if annotated:
        body["__annotations__"] = {"context": int}
    with pytest.raises(TypeError, match=r"Cart\.context: .*rename"):
        type("Cart", (atoll.Entity,), body)


def test_emit_is_reserved_where_there_are_events_only() -> None:
    class Radio(atoll.Entity):
        @atoll.command
        def emit(self) -> None: ...

    with pytest.raises(TypeError, match=r"Account\.emit"):

        class Account(atoll.EventSourced):
            @atoll.command
            def emit(self) -> None: ...


def test_a_mixin_cannot_bring_a_reserved_name_in() -> None:
    class Mixin:
        def context(self) -> None: ...

    with pytest.raises(TypeError, match=r"Cart\.context"):

        class Cart(Mixin, atoll.Entity):
            pass


def test_users_may_use_the_words_of_the_context_themselves() -> None:
    """Only `context` is taken: `id`, `now`, `cancel`, `delete` are free."""

    class Order(atoll.Entity):
        id: str = ""
        now: int = 0

        @atoll.command
        def cancel(self) -> str:
            return self.context.id

        @atoll.command
        def delete(self) -> None: ...

    assert set(kind_of(Order).handlers) == {"cancel", "delete"}


def test_a_member_that_is_field_and_handler_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Account\.balance is annotated as a field"):

        class Account(atoll.Entity):
            balance: int

            @atoll.query
            def balance(self) -> int:
                return 0


def test_a_constructor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Cart\.__init__: .*on_activate"):

        class Cart(atoll.Entity):
            def __init__(self) -> None: ...


def test_generic_abstract_and_protocol_bases_are_fine() -> None:
    T = TypeVar("T")

    class Sized(Protocol):
        def size(self) -> int: ...

    class Base(Sized, atoll.Entity, Generic[T]):
        items: list[str] = atoll.field(default_factory=list)

        def size(self) -> int:
            return len(self.items)

    class Cart(Base[int], abc.ABC):
        @atoll.query
        def count(self) -> int:
            return self.size()

    assert set(kind_of(Cart).handlers) == {"count"}


def test_a_hook_must_be_async() -> None:
    with pytest.raises(TypeError, match=r"Cart\.on_activate is a hook"):

        class Cart(atoll.Entity):
            def on_activate(self) -> None: ...


def test_objects_of_the_class_are_not_made_by_users() -> None:
    class Cart(atoll.Entity):
        pass

    with pytest.raises(TypeError, match=r"cluster\.entity\(Cart, id\)"):
        Cart()


def test_handlers_need_annotated_named_parameters() -> None:
    with pytest.raises(TypeError, match=r"Cart\.add: annotate the parameter item"):

        class Cart(atoll.Entity):
            @atoll.command
            def add(self, item) -> None: ...

    with pytest.raises(TypeError, match=r"Basket\.add: \*items"):

        class Basket(atoll.Entity):
            @atoll.command
            def add(self, *items: int) -> None: ...

    with pytest.raises(TypeError, match=r"Box\.add, parameter item: .*Plain"):

        class Box(atoll.Entity):
            @atoll.command
            def add(self, item: Plain) -> None: ...

    with pytest.raises(TypeError, match=r"Bag\.top, its result: .*Plain"):

        class Bag(atoll.Entity):
            @atoll.query
            def top(self) -> Plain:
                return Plain()

    with pytest.raises(TypeError, match=r"Sack\.add is a method"):

        class Sack(atoll.Entity):
            @atoll.command
            def add() -> None: ...

    with pytest.raises(TypeError, match=r"Net\._add: a handler is called from outside"):

        class Net(atoll.Entity):
            @atoll.command
            def _add(self) -> None: ...


@pytest.mark.parametrize("decorator", [atoll.command, atoll.query, atoll.apply])
def test_decorators_are_used_bare(decorator: Any) -> None:
    with pytest.raises(TypeError, match="used bare"):
        decorator("deposit")
    with pytest.raises(TypeError, match="used bare"):
        decorator(classmethod(print))


def test_a_handler_does_not_yield() -> None:
    with pytest.raises(TypeError, match="cannot yield"):

        class Cart(atoll.Entity):
            @atoll.command
            def numbers(self) -> Any:
                yield 1


def test_an_overridden_handler_is_the_nearest_one_or_none() -> None:
    class Base(atoll.Entity):
        @atoll.command
        def one(self) -> int:
            return 1

        @atoll.command
        def two(self) -> int:
            return 2

    class Child(Base):
        @atoll.query
        def one(self) -> int:
            return 11

        def two(self) -> int:
            return 22

    assert {name: handler.is_query for name, handler in kind_of(Child).handlers.items()} == {"one": True}


# ---- events


def test_an_event_is_stored_by_field_name_so_it_must_have_fields() -> None:
    class Listed(msgspec.Struct, array_like=True):
        x: int

    for event in (int, dict, Plain, Listed):
        with pytest.raises(TypeError, match=r"Account\._it: .* cannot be an event"):
            type(
                "Account",
                (atoll.EventSourced,),
                {"_it": atoll.apply(_applying(event)), "__module__": __name__},
            )


def _applying(event: Any) -> Any:
    def _it(self: Any, event: Any) -> None: ...

    _it.__annotations__["event"] = event
    return _it


def test_two_methods_for_one_event_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Account\._b and _a both apply Opened"):

        class Account(atoll.EventSourced):
            @atoll.apply
            def _a(self, event: Opened) -> None: ...

            @atoll.apply
            def _b(self, event: Opened) -> None: ...


def test_two_events_of_one_name_in_a_kind_are_refused() -> None:
    other = dataclass(frozen=True)(type("Opened", (), {"__annotations__": {"x": int}, "__module__": __name__}))
    with pytest.raises(TypeError, match=r"Account has two events named Opened"):
        type(
            "Account",
            (atoll.EventSourced,),
            {"_a": atoll.apply(_applying(Opened)), "_b": atoll.apply(_applying(other)), "__module__": __name__},
        )


def test_one_method_may_apply_a_union_of_events() -> None:
    @dataclass(frozen=True)
    class Closed:
        pass

    class Account(atoll.EventSourced):
        @atoll.apply
        def _any(self, event: Opened | Closed) -> None: ...

    assert set(kind_of(Account).events) == {Opened, Closed}


def test_apply_belongs_to_event_sourced_kinds_and_names_its_event() -> None:
    with pytest.raises(TypeError, match=r"Cart: @atoll\.apply is for events"):

        class Cart(atoll.Entity):
            @atoll.apply
            def _opened(self, event: Opened) -> None: ...

    with pytest.raises(TypeError, match=r"Account\._opened: an @atoll.apply method takes self and one event"):

        class Account(atoll.EventSourced):
            @atoll.apply
            def _opened(self, event) -> None: ...


def test_only_entity_classes_have_a_kind() -> None:
    for other in (Plain, atoll.Entity, atoll.EventSourced, "Account", Plain()):
        with pytest.raises(TypeError, match=re.escape("derive one from atoll.Entity")):
            kind_of(other)


def test_field_takes_one_of_its_two_arguments() -> None:
    for arguments in ({}, {"default": 1, "default_factory": int}):
        with pytest.raises(TypeError, match="either default or default_factory"):
            atoll.field(**arguments)
