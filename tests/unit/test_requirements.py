"""What an app and its kinds require of a node, put together and compared."""

from __future__ import annotations

from typing import Any

import pytest

import atoll
from atoll.actors.requirements import WrongWeight, unmet, weight_of


class Plain(atoll.Entity):
    pass


class Model(atoll.Entity, requires={"GPU": 1}):
    pass


class BigModel(Model, requires={"GPU": 4, "zone": "eu-1"}):
    pass


class Elsewhere(atoll.EventSourced, requires={"zone": "us-2"}):
    pass


def test_an_app_requires_what_it_says_and_what_its_kinds_say() -> None:
    """The larger number of each resource; a kind inherits what its base class requires."""
    assert dict(atoll.App("a", entities=[Plain]).requires) == {}
    assert dict(atoll.App("a", entities=[Plain, Model], requires={"disk": 0.5, "GPU": 0.5}).requires) == {
        "disk": 0.5,
        "GPU": 1,
    }
    assert dict(atoll.App("a", entities=[Model, BigModel]).requires) == {"GPU": 4, "zone": "eu-1"}


@pytest.mark.parametrize(
    ("requires", "error", "said"),
    [
        ({"zone": "eu-1"}, ValueError, "zone='eu-1' and zone='us-2'"),
        ({"zone": 1}, ValueError, "no node can have both"),
        (["GPU"], TypeError, "requires is a mapping"),
        ({"GPU": True}, TypeError, "a number .resource. or a string"),
        ({"GPU": 0}, ValueError, "a resource is above 0"),
        ({"GPU": float("nan")}, ValueError, "a resource is above 0"),
        ({"zone2": ""}, ValueError, "a label has a value"),
        ({"": 1}, TypeError, "is a string"),
    ],
)
def test_requirements_that_cannot_be(requires: Any, error: type[Exception], said: str) -> None:
    """One error that names them, when the app is made."""
    with pytest.raises(error, match=said):
        atoll.App("a", entities=[Elsewhere], requires=requires)


def test_a_class_argument_that_cannot_be() -> None:
    with pytest.raises(TypeError, match="Wrong: requires is a mapping"):

        class Wrong(atoll.Entity, requires=5):  # type: ignore[arg-type] # what is wrong with it
            pass


def test_a_node_has_it_or_lacks_it() -> None:
    """Resources by the amount in all, labels by their value; what is lacking is named."""
    required = {"GPU": 2, "zone": "eu-1"}
    assert unmet(required, {"CPU": 8.0, "GPU": 2.0}, {"zone": "eu-1", "other": "x"}) == []
    assert unmet(required, {"GPU": 1.0}, {"zone": "eu-1"}) == ["GPU >= 2"]
    assert unmet(required, {"zone": 1.0}, {}) == ["GPU >= 2", "zone='eu-1'"]


@pytest.mark.parametrize("version", ["", "2", "1.4.0+local", "a" * 64])
def test_a_version_is_a_short_string(version: str) -> None:
    assert atoll.App("a", entities=[Plain], version=version).version == version


@pytest.mark.parametrize("version", ["a b", "a/b", "a" * 65, 2, None])
def test_a_version_that_cannot_be(version: Any) -> None:
    with pytest.raises(ValueError, match="cannot be a version"):
        atoll.App("a", entities=[Plain], version=version)


def test_a_node_weighs_what_its_label_says_and_one_without_a_label() -> None:
    """S11: a host's share of the shards goes by the weight of its node."""
    assert weight_of({}) == weight_of({"zone": "eu-1"}) == 1.0
    assert weight_of({"atoll-weight": "2.5"}) == 2.5


@pytest.mark.parametrize("said", ["", "much", "0", "-1", "inf", "nan"])
def test_a_label_that_is_no_weight_is_told(said: str) -> None:
    """API: the node's host does not start, and the reason names the label and what to write."""
    with pytest.raises(WrongWeight, match=r"atoll-weight=.*start that node with"):
        weight_of({"atoll-weight": said})
