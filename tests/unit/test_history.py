"""The checker of histories itself: one that can be passes, and each way in which one cannot be is found."""

from __future__ import annotations

from typing import Any

import pytest
from ledger import Findings, History, Operation, Outcome, Verb


def operation(verb: Verb, token: str, began: float, ended: float, **more: Any) -> Operation:
    known = {"client": "A", "caller": 0, "shard": 7, "entity": "List/e", "outcome": Outcome.DONE}
    return Operation(verb=verb, token=token, began=began, ended=ended, **(known | more))


GOOD = [
    operation(Verb.ASK, "a", 0, 1, index=0),
    operation(Verb.TELL, "t", 0, 1, client="B"),
    operation(Verb.READ, "", 2, 3, client="B", items=["a"]),
    operation(Verb.ASK, "u", 2, 5, outcome=Outcome.UNKNOWN),
    operation(Verb.ASK, "r", 4, 5, client="B", outcome=Outcome.REFUSED),
    operation(Verb.ASK, "b", 6, 7, index=2),
    operation(Verb.READ, "", 8, 9, items=["a", "t", "b"]),
]
FINAL = ["a", "t", "b"]


def findings(operations: list[Operation], final: list[str]) -> dict[str, int]:
    found: Findings = History.of(operations).findings({"List/e": final})
    return {kind: len(told) for kind, told in vars(found).items() if told}


def test_a_history_that_can_be_has_no_findings() -> None:
    """An accepted tell may run later than what was asked after it, an unknown outcome may be or not be."""
    assert findings(GOOD, FINAL) == {}
    assert findings([o for o in GOOD if o.verb is not Verb.READ], ["a", "u", "b", "t"]) == {}


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (["a", "b"], {"lost": 2, "stale_reads": 1}),  # the tell, and b is not where it was said to be
        (["a", "t", "b", "a"], {"doubled": 1}),
        (["a", "t", "b", "r"], {"invented": 1}),
        (["a", "t", "b", "x"], {"invented": 1}),
        (["t", "a", "b"], {"lost": 1, "stale_reads": 2}),
        (["a", "t", "b", "u"], {"reordered": 1}),  # the same caller sent it before b
    ],
)
def test_what_the_entity_holds_is_compared_with_what_was_told(final: list[str], expected: dict[str, int]) -> None:
    """M01: lost, doubled, invented and reordered appends are told apart."""
    assert findings(GOOD, final) == expected


def test_an_append_before_one_that_had_been_answered_when_it_was_sent_is_reordered() -> None:
    """Also when another client sent it, and also a tell."""
    later = [
        operation(Verb.ASK, "a", 0, 1, index=1),
        operation(Verb.ASK, "b", 2, 3, client="B", index=0),
    ]
    assert findings(later, ["b", "a"]) == {"reordered": 1}
    told = [operation(Verb.ASK, "a", 0, 1, index=1), operation(Verb.TELL, "t", 2, 3, client="B")]
    assert findings(told, ["t", "a"]) == {"reordered": 1}


def test_a_read_that_lacks_what_was_acknowledged_or_seen_before_it_is_stale() -> None:
    """Acknowledged to somebody, or seen by an earlier read; what was going on at the same time may be lacking."""
    appended = operation(Verb.ASK, "a", 0, 1, index=0)
    assert findings([appended, operation(Verb.READ, "", 2, 3, client="B", items=[])], ["a"]) == {"stale_reads": 1}
    assert findings([appended, operation(Verb.READ, "", 0.5, 3, client="B", items=[])], ["a"]) == {}
    seen = [
        operation(Verb.ASK, "a", 0, 9, index=0),
        operation(Verb.READ, "", 1, 2, client="B", items=["a"]),
        operation(Verb.READ, "", 3, 4, client="C", items=[]),
    ]
    assert findings(seen, ["a"]) == {"stale_reads": 1}
    assert findings([operation(Verb.READ, "", 1, 2, items=["x"])], []) == {"stale_reads": 1}
