"""Entities at rest: what they are made from again, by generations. Pure."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest

import atoll
from atoll.actors.activation import Activation
from atoll.actors.kind import kind_of
from atoll.actors.settings import Settings
from atoll.actors.stored import StoredEntity, StoredState
from atoll.actors.turn import Turn
from atoll.sharding.resting import GENERATIONS, Resting

ONE: Any = "one shard"
OTHER: Any = "another"


def stored(seq: int) -> StoredEntity:
    return StoredEntity(seq, StoredState(1, b"state"))


def rest(resting: Resting, *at: tuple[str, float], shard: Any = ONE) -> None:
    for number, (id, used) in enumerate(at):
        resting.put(shard, ("Box", id), stored(number), used)


def left(resting: Resting, ids: str, shard: Any = ONE) -> str:
    """Those of `ids` that rest still. Takes them all."""
    return "".join(id for id in ids if resting.take(shard, ("Box", id)) is not None)


def test_who_rests_is_taken_once_and_from_its_own_shard() -> None:
    resting = Resting(80.0, 100)
    rest(resting, ("a", 0.0), ("b", 30.0))
    assert resting.take(OTHER, ("Box", "a")) is None
    assert resting.take(ONE, ("Box", "b")) == stored(1)
    assert resting.take(ONE, ("Box", "b")) is None
    assert resting.count == 1


def test_the_oldest_generation_tells_who_idled_for_long() -> None:
    """M13: the time is that of its newest, so that nobody leaves early, and nobody an eighth of the idle time late."""
    resting = Resting(80.0, 1000)
    assert resting.oldest_use() == math.inf
    rest(resting, ("a", 0.0), ("b", 9.0), ("c", 10.0), ("d", 25.0))
    assert resting.oldest_use() == 9.0
    resting.drop()
    resting.drop()
    assert resting.oldest_use() == 10.0
    assert left(resting, "abcd") == "cd"
    assert (resting.count, resting.oldest_use()) == (0, math.inf)


def test_above_the_bound_an_eighth_of_all_is_a_generation() -> None:
    """However fast they come: who leaves is among the oldest, not the newest."""
    resting = Resting(1e9, 4 * GENERATIONS)
    rest(resting, *((chr(ord("a") + n), 0.0) for n in range(12)))
    for _ in range(4):
        resting.drop()
    assert left(resting, "abcd") == ""
    assert left(resting, "efghijkl") == "efghijkl"


def test_a_closed_shard_takes_its_own_along() -> None:
    """S09: nothing of it can be woken here."""
    resting = Resting(80.0, 100)
    rest(resting, ("a", 0.0), ("b", 50.0))
    rest(resting, ("a", 51.0), shard=OTHER)
    resting.close(ONE)
    assert resting.count == 1
    assert left(resting, "ab") == ""
    assert left(resting, "a", OTHER) == "a"


def test_the_garbage_collector_has_nothing_to_look_at() -> None:
    """A million tracked objects would hold the loop for a second at each full collection."""
    resting = Resting(80.0, 1_000_000)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(10_000):
        resting.put(ONE, ("Box", str(number)), stored(number), 0.0)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


# ---- what an activation is made from again


class Cup(atoll.Entity):
    drops: list[int] = atoll.field(default_factory=list)

    @atoll.command
    def drop(self, amount: int) -> None:
        self.drops.append(amount)

    @atoll.command
    def empty(self) -> None:
        self.context.delete()


class Glass(Cup, durable=False):
    pass


class Hooked(Cup):
    async def on_activate(self) -> None:
        pass


def activation(kind: type[atoll.Entity], stored: StoredEntity | None = None) -> Activation:
    return Activation(kind_of(kind), "a", stored or StoredEntity(), Settings())


@pytest.mark.parametrize("kind", [Cup, Glass])
@pytest.mark.parametrize("commands", [(), ("drop",), ("drop", "drop"), ("drop", "empty"), ("drop", "empty", "drop")])
def test_from_rest_an_activation_is_what_it_was(kind: type[atoll.Entity], commands: tuple[str, ...]) -> None:
    """M13: its fields, its version, and whether there is anything of it to store."""
    before = activation(kind)
    for number, command in enumerate(commands):
        handler = kind_of(kind).handlers[command]
        arguments = handler.encode_arguments((number,) if command == "drop" else (), {})
        assert before.run(handler, arguments, Turn(0, 1.0)).error is None
    rested = before.at_rest()
    assert rested is not None
    after = activation(kind, rested)
    assert (after.fields(), after.stored(), after.seq) == (before.fields(), before.stored(), before.seq)


def test_what_a_hook_made_cannot_be_made_again() -> None:
    assert activation(Hooked).at_rest() is None
