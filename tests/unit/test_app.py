"""An app is checked when it is made; what is wrong with it is one clear error."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import atoll


class Cart(atoll.Entity):
    pass


class Other(atoll.Entity, kind="Cart"):
    pass


class Unfinished(atoll.Entity, abc.ABC):
    @abc.abstractmethod
    def price(self) -> int: ...


@contextlib.asynccontextmanager
async def pool() -> AsyncIterator[str]:
    yield "pool"


def test_an_app_knows_its_kinds_settings_and_resources() -> None:
    app = atoll.App("shop", entities=[Cart], settings={"shards": 8}, store="sqlite:./data", resources=pool)
    assert (app.name, list(app.kinds), app.stores, app.resources) == ("shop", ["Cart"], ("sqlite:./data",), pool)
    assert app.kinds["Cart"].entity_class is Cart
    assert app.settings_asked == {"shards": 8}
    assert repr(app) == "<app shop: Cart>"


def test_of_whole_settings_only_what_differs_was_asked_for() -> None:
    """So that `atoll config` can say where each value comes from."""
    app = atoll.App("shop", entities=[Cart], settings=atoll.Settings(shards=8, lease_s=3.0))
    assert app.settings_asked == {"shards": 8}


def test_an_app_finds_rejections_that_were_defined_later() -> None:
    app = atoll.App("shop", entities=[Cart])

    class SoldOutLater(atoll.Rejected):
        pass

    assert app.rejections[SoldOutLater.__qualname__] is SoldOutLater


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"name": ""}, ValueError, "'' cannot name an app"),
        ({"name": "my shop"}, ValueError, "cannot name an app"),
        ({"entities": []}, ValueError, "has no entities"),
        ({"entities": [Cart, Other]}, ValueError, r"Cart and Other are both of kind 'Cart'; .*kind="),
        ({"entities": [Cart, Cart]}, ValueError, "both of kind"),
        ({"entities": [int]}, TypeError, "not an entity class"),
        ({"entities": [Unfinished]}, TypeError, "Unfinished has abstract methods"),
        ({"settings": {"shard": 8}}, ValueError, "settings: .*shard"),
        ({"settings": {"shards": "many"}}, ValueError, "settings: .*shards"),
        ({"resources": "pool"}, TypeError, "resources is a function"),
    ],
)
def test_an_app_that_cannot_be_is_refused(arguments: Any, error: type[Exception], said: str) -> None:
    name = arguments.pop("name", "shop")
    with pytest.raises(error, match=said):
        atoll.App(name, **{"entities": [Cart], **arguments})


def test_command_ids_carry_their_time_and_differ() -> None:
    ids = {atoll.new_command_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 37 and each.startswith("atl-") for each in ids)


def test_everything_public_is_at_the_door() -> None:
    assert sorted(atoll.__all__) == atoll.__all__
    for name in atoll.__all__:
        assert getattr(atoll, name) is not None
