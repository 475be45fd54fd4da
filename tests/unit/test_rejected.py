"""`Rejected` and its subclasses: raised with fields at one end, caught with them at the other."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.actors.calls import Status
from atoll.actors.codec import MESSAGE_CHARACTERS_MAX, encode_message, encode_rejected, raise_for
from atoll.actors.errors import known_rejections


class InsufficientFunds(atoll.Rejected):
    balance: int
    needed: Decimal = Decimal(1)


class StillInsufficient(InsufficientFunds):
    hints: list[str] = atoll.field(default_factory=list)


class Closed(atoll.Rejected):
    """Has no fields."""


class Coded(atoll.Rejected):
    """Makes its text by itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


def sent(error: atoll.Rejected, known: Any = None) -> atoll.Rejected:
    """What the caller catches."""
    with pytest.raises(atoll.Rejected) as caught:
        raise_for(Status.REJECTED, encode_rejected(error), known_rejections() if known is None else known)
    return caught.value


def test_a_refusal_arrives_as_itself_with_its_fields() -> None:
    error = sent(StillInsufficient(balance=5, needed=Decimal("7.50"), hints=["save"]))
    assert type(error) is StillInsufficient
    assert (error.balance, error.needed, error.hints) == (5, Decimal("7.50"), ["save"])
    assert str(error) == "StillInsufficient(balance=5, needed=Decimal('7.50'), hints=['save'])"


@given(st.text(), st.integers(-(2**63), 2**63 - 1))
def test_any_text_and_number_arrive(text: str, number: int) -> None:
    assert str(sent(atoll.Rejected(text))) == text
    error = sent(InsufficientFunds(number, message=text or "x"))
    assert (str(error), error.__dict__["balance"]) == (text or "x", number)


def test_fields_are_given_in_order_or_by_keyword_and_defaults_fill_in() -> None:
    error = InsufficientFunds(5)
    assert (error.balance, error.needed) == (5, 1)
    assert StillInsufficient(balance=1).hints is not StillInsufficient(balance=1).hints
    assert str(Closed("for good")) == "for good"
    assert str(sent(Closed())) == ""


@pytest.mark.parametrize(
    ("args", "fields", "said"),
    [
        ((), {}, "the field balance is missing"),
        ((1, 2, 3), {}, "has 2 fields, 3 values were given"),
        ((1,), {"balance": 1}, "balance is given twice"),
        ((1,), {"colour": 1}, "colour is not a field"),
    ],
)
def test_what_does_not_fit_the_fields_is_a_type_error(args: Any, fields: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        InsufficientFunds(*args, **fields)


def test_a_subclass_with_a_constructor_of_its_own_arrives_too() -> None:
    error = sent(Coded(7))
    assert (type(error), str(error)) == (Coded, "code 7")


def test_an_unknown_class_arrives_as_plain_rejected_with_its_text() -> None:
    """Nothing is imported because of what came over the wire."""
    error = sent(InsufficientFunds(5), known={})
    assert type(error) is atoll.Rejected
    assert str(error).startswith("InsufficientFunds(balance=5")


def test_a_class_of_that_name_with_other_fields_is_not_mistaken_for_it() -> None:
    class InsufficientFunds(atoll.Rejected):  # another version of the code
        balance: str

    error = sent(globals()["InsufficientFunds"](5), known={"InsufficientFunds": InsufficientFunds})
    assert type(error) is atoll.Rejected


def test_two_classes_of_one_name_are_told_apart_by_module() -> None:
    other = type(
        "InsufficientFunds", (atoll.Rejected,), {"__module__": "elsewhere", "__qualname__": "InsufficientFunds"}
    )
    assert known_rejections()["InsufficientFunds"] is other
    assert type(sent(InsufficientFunds(5))) is InsufficientFunds
    assert type(sent(other("x"))) is other


def test_a_field_that_cannot_be_sent_is_refused_when_it_is_encoded() -> None:
    with pytest.raises(Exception, match="Expected `int`, got `str`"):
        encode_rejected(InsufficientFunds(balance="five"))


def test_field_types_are_checked_at_definition() -> None:
    with pytest.raises(TypeError, match=r"Bad\.thing: .*object"):

        class Bad(atoll.Rejected):
            thing: object

    for name in ("message", "args"):
        with pytest.raises(TypeError, match=rf"Bad\.{name}: every Rejected has `{name}` already"):
            type("Bad", (atoll.Rejected,), {"__annotations__": {name: str}, "__module__": __name__})


def test_a_refusal_survives_pickle_and_copy() -> None:
    """Users' own processes pass exceptions around (a process pool, a Ray task)."""
    error = InsufficientFunds(balance=5, message="too little")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), str(other), other.balance, other.needed) == (InsufficientFunds, "too little", 5, 1)


# ---- the other statuses


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.INVALID_COMMAND, atoll.InvalidCommand),
        (Status.HANDLER_FAILED, atoll.HandlerFailed),
        (Status.OVERLOADED, atoll.Overloaded),
        (Status.DEADLINE_EXCEEDED, atoll.DeadlineExceeded),
        (Status.UNAVAILABLE, atoll.Unavailable),
        (Status.CALL_CYCLE, atoll.CallCycle),
    ],
)
def test_every_status_is_its_error_with_its_text(status: Status, error: type[Exception]) -> None:
    with pytest.raises(error, match="why") as caught:
        raise_for(status, encode_message("why"), {})
    assert type(caught.value) is error
    never_ran = (Status.OVERLOADED, Status.DEADLINE_EXCEEDED, Status.UNAVAILABLE, Status.CALL_CYCLE)
    assert isinstance(caught.value, atoll.NotExecuted) == (status in never_ran)


def test_a_number_below_the_floor_has_an_unknown_outcome() -> None:
    with pytest.raises(atoll.OutcomeUnknown):
        raise_for(Status.BELOW_FLOOR, b"", {})


@given(st.binary())
def test_a_refusal_that_cannot_be_read_is_still_a_refusal(noise: bytes) -> None:
    """R03"""
    with pytest.raises(atoll.Rejected):
        raise_for(Status.REJECTED, noise, known_rejections())


def test_messages_are_bounded() -> None:
    assert len(encode_message("é" * 100_000).decode()) < MESSAGE_CHARACTERS_MAX + 40
