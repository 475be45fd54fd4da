"""Arguments and results: what fits travels unchanged, and what does not is refused naming the parameter."""

from __future__ import annotations

import string
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.actors.kind import Handler, kind_of


@dataclass(frozen=True)
class Line:
    sku: str
    count: int = 1


class Shop(atoll.Entity):
    @atoll.command
    def nothing(self) -> None: ...

    @atoll.command
    def pay(self, amount: int, note: str = "cash", *, tip: float = 0.0) -> list[Any]:
        return [amount, note, tip]

    @atoll.command
    def order(self, lines: list[Line], extra: dict[str, Line] | None = None) -> int:
        return len(lines)

    @atoll.command
    def scalars(self, i: int, f: float, s: str, b: bytes, t: bool) -> None: ...

    @atoll.command
    def rich(self, when: datetime, key: uuid.UUID, price: Decimal, tags: frozenset[str]) -> None: ...

    @atoll.command
    def small(self, n: Annotated[int, msgspec.Meta(ge=0, le=9)]) -> int:
        return n

    @atoll.command
    def collect(self, into: list[int] = [0]) -> list[int]:  # noqa: B006 - the promise below
        into.append(1)
        return into

    @atoll.command
    def anything(self, value: Any) -> Any:
        return value

    @atoll.query
    def number(self) -> int:
        return 5


def handler(name: str) -> Handler:
    return kind_of(Shop).handlers[name]


def test_defaults_are_left_out_by_the_caller_and_filled_in_by_the_host() -> None:
    """A default belongs to the code that runs: a caller with an older one does not send its own."""
    pay = handler("pay")
    arguments = pay.encode_arguments((3,), {})
    assert msgspec.msgpack.decode(arguments) == {"amount": 3}
    assert pay.decode_arguments(arguments) == (3, "cash", 0.0)
    assert pay.call(object(), 3, "cash", 0.5) == [3, "cash", 0.5]


def test_a_default_is_made_anew_for_every_call() -> None:
    collect = handler("collect")
    for _ in range(2):
        assert collect.call(None, *collect.decode_arguments(b"\x80")) == [0, 1]


def test_arguments_travel_as_a_map_by_name() -> None:
    arguments = handler("pay").encode_arguments((1, "x"), {"tip": 2})
    assert msgspec.msgpack.decode(arguments) == {"amount": 1, "note": "x", "tip": 2}
    assert handler("nothing").encode_arguments((), {}) == b"\x80"


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "said"),
    [
        ("pay", ("ten",), {}, r"Shop\.pay: argument amount: Expected `int`, got `str`"),
        ("pay", (True,), {}, r"argument amount: Expected `int`, got `bool`"),
        ("pay", (1.5,), {}, r"argument amount: Expected `int`, got `float`"),
        ("pay", (None,), {}, r"argument amount: Expected `int`, got `None`"),
        ("pay", (2**65,), {}, r"argument amount: "),
        ("pay", (1, "\ud800"), {}, r"argument note: .*surrogates"),
        ("pay", (), {}, r"the argument amount is missing; it takes \(amount, note, tip\)"),
        ("pay", (1, "x", 2.0), {}, r"3 positional arguments were given"),
        ("pay", (1,), {"amount": 2}, r"the argument amount is given twice"),
        ("pay", (1,), {"colour": 2}, r"has no argument colour; it takes \(amount, note, tip\)"),
        ("pay", (object(),), {}, r"argument amount: Encoding objects of type object"),
        ("order", ([Line("a"), 5],), {}, r"argument lines\[1\]: Expected `object`, got `int`"),
        ("order", ([Line("a", "b")],), {}, r"argument lines\[0\]\.count: Expected `int`, got `str`"),
        ("small", (10,), {}, r"argument n: Expected `int` <= 9"),
        ("nothing", (1,), {}, r"takes \(\); 1 positional arguments were given"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_caller(name: str, args: Any, kwargs: Any, said: str) -> None:
    """`InvalidCommand` names handler and parameter, and nothing is sent."""
    with pytest.raises(atoll.InvalidCommand, match=said):
        handler(name).encode_arguments(args, kwargs)


def test_a_list_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(atoll.InvalidCommand, match="argument value"):
        handler("anything").encode_arguments((loop,), {})


def test_an_int_passes_for_a_float_as_everywhere_in_python() -> None:
    scalars = handler("scalars")
    decoded = scalars.decode_arguments(scalars.encode_arguments((1, 2, "s", b"b", True), {}))
    assert decoded == (1, 2.0, "s", b"b", True)
    assert type(decoded[1]) is float


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.booleans(),
)
def test_scalars_survive_the_way(i: int, f: float, s: str, b: bytes, t: bool) -> None:
    scalars = handler("scalars")
    assert scalars.decode_arguments(scalars.encode_arguments((i, f, s, b, t), {})) == (i, f, s, b, t)


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.frozensets(st.text(string.ascii_letters)),
)
def test_rich_types_survive_the_way(when: datetime, key: uuid.UUID, price: Decimal, tags: frozenset[str]) -> None:
    rich = handler("rich")
    assert rich.decode_arguments(rich.encode_arguments((when, key, price, tags), {})) == (when, key, price, tags)


@given(st.lists(st.builds(Line, st.text(), st.integers(-(2**63), 2**63 - 1))))
def test_dataclasses_survive_the_way(lines: list[Line]) -> None:
    order = handler("order")
    assert order.decode_arguments(order.encode_arguments((lines,), {})) == (lines, None)


@given(st.binary())
def test_no_bytes_from_outside_do_harm_to_the_host(noise: bytes) -> None:
    """R03: whatever stands for arguments either decodes, or is complained about in words."""
    pay = handler("pay")
    complaint = pay.misfit(noise)
    if complaint is None:
        pay.decode_arguments(noise)
    else:
        assert complaint.startswith("Shop.pay")


def test_arguments_that_fit_are_no_misfit() -> None:
    assert handler("pay").misfit(handler("pay").encode_arguments((3,), {})) is None
    assert handler("pay").misfit(b"\x80") == "Shop.pay: the argument amount is missing; it takes (amount, note, tip)"


@pytest.mark.parametrize(
    ("value", "payload"),
    [(None, b"\xc0"), (5, b"\x05"), ("x", b"\xa1x")],
)
def test_any_result_is_encoded_as_it_is(value: Any, payload: bytes) -> None:
    assert handler("anything").encode_reply(value) == payload
    assert handler("anything").decode_reply(payload) == value


@pytest.mark.parametrize("value", ["5", None, 5.5, object(), 2**70])
def test_a_result_that_the_caller_could_not_read_is_no_result(value: Any) -> None:
    """It is refused before anything is committed, since the caller would never learn what it was."""
    with pytest.raises(ValueError, match="returned what is not int"):
        handler("number").encode_reply(value)
    with pytest.raises(ValueError, match="returned what is not None"):
        handler("nothing").encode_reply(1)


def test_a_result_of_other_code_says_that_the_command_ran() -> None:
    with pytest.raises(atoll.AtollError, match=r"Shop\.number ran, but its result is not int") as caught:
        handler("number").decode_reply(b"\xa1x")
    assert type(caught.value) is atoll.AtollError  # neither NotExecuted nor OutcomeUnknown: its fate is known
