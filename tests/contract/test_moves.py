"""Planned moves: a shard's row says where it is wanted, and its owner's release hands it over. No message decides anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from store_rows import ending, own, row_of

from atoll.persistence.spi import Assignment, ShardRow, ShardState, Store

if TYPE_CHECKING:
    from conftest import Stores

Ending = Callable[[Store, int], Awaitable[object]]
INELIGIBLE: dict[str, Ending] = {
    "condemned": lambda store, host: store.condemn(host, 0),
    "sealed": lambda store, host: store.seal(host),
    "draining": lambda store, host: store.set_draining(host, True),
}


@pytest.fixture
async def other(store: Store) -> int:
    """A second live host."""
    return await store.register_host("b:1", "node-2", None)


async def test_a_shard_is_wanted_at_another_host(store: Store, host: int, other: int) -> None:
    """S13: a move sets the target and nothing else: the owner goes on at its epoch, and its checkpoints keep the target."""
    epoch = (await own(store, host, 0))[0]
    before = await row_of(store, 0)
    assert await store.move([Assignment(0, epoch, other)]) == {0}
    assert await row_of(store, 0) == replace(before, target=other)
    assert await store.checkpoint(host, [ending(0, epoch, 5)]) == frozenset()
    assert await row_of(store, 0) == replace(before, target=other, position=5)
    assert await store.claim(other, [(0, epoch), (0, epoch + 1)]) == [], "it is not the target's before the release"


async def test_moves_are_taken_one_by_one(store: Store, host: int, other: int) -> None:
    """S13: of many moves those take effect whose shard is still owned at the epoch they were decided on, and the answer
    says which."""
    epochs = await own(store, host, 0, 1)
    await store.assign([Assignment(2, 0, host)])
    decided = [
        Assignment(0, epochs[0], other),
        Assignment(1, epochs[1] - 1, other),
        Assignment(1, epochs[1] + 1, other),
        Assignment(2, 1, other),
        Assignment(3, 0, other),
    ]
    before = await store.shards()
    assert await store.move(decided) == {0}
    assert await store.shards() == [replace(before[0], target=other), *before[1:]]


async def test_a_repeated_move_changes_nothing_more(store: Store, host: int, other: int) -> None:
    """S13: its first outcome was unknown; the row says already what is asked."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    before = await row_of(store, 0)
    assert await store.move([Assignment(0, epoch, other)]) == frozenset()
    assert await row_of(store, 0) == before


@pytest.mark.parametrize("state", ["live", *INELIGIBLE])
async def test_a_move_is_called_off(store: Store, host: int, other: int, state: str) -> None:
    """S13: a move to the present owner takes the target away, also when that owner is drained or given up: then nobody
    may be left to go to. Its release leaves the shard to nobody."""
    epoch = (await own(store, host, 0))[0]
    before = await row_of(store, 0)
    assert await store.move([Assignment(0, epoch, host)]) == frozenset(), "there is nothing to call off"
    await store.move([Assignment(0, epoch, other)])
    if state != "live":
        await INELIGIBLE[state](store, host)
    assert await store.move([Assignment(0, epoch, host)]) == {0}
    assert await row_of(store, 0) == before
    await store.checkpoint(host, [ending(0, epoch, 3, release=True)])
    assert await row_of(store, 0) == ShardRow(0, ShardState.FREE, epoch + 1, None, None, (), 3)


@pytest.mark.parametrize("state", [*INELIGIBLE, "unknown"])
async def test_nothing_is_moved_to_a_host_that_may_be_given_nothing(
    store: Store, host: int, other: int, state: str
) -> None:
    """S11, S13: condemned, sealed, draining and unknown hosts are no targets; an earlier target stands."""
    epochs = await own(store, host, 0, 1)
    await store.move([Assignment(0, epochs[0], other)])
    late = 99
    if state in INELIGIBLE:
        late = await store.register_host("c:1", "node-3", None)
        await INELIGIBLE[state](store, late)
    assert await store.move([Assignment(shard, epochs[shard], late) for shard in (0, 1)]) == frozenset()
    assert [row.target for row in await store.shards()] == [other, None, None, None]


async def test_a_release_hands_the_shard_to_its_target(store: Store, host: int, other: int) -> None:
    """PR12, S13: OWNED -> ASSIGNED to the target in the transaction that releases: epoch + 1, p as released, nothing to seal.
    The target claims, and it alone can."""
    epochs = await own(store, host, 0, 1)
    await store.move([Assignment(shard, epochs[shard], other) for shard in (0, 1)])
    assert await store.checkpoint(host, [ending(0, epochs[0], 12, release=True)]) == frozenset()
    assert await row_of(store, 0) == ShardRow(0, ShardState.ASSIGNED, epochs[0] + 1, other, None, (), 12)
    assert (await row_of(store, 1)).owners == (host,), "the other one is still served where it was"
    assert await store.claim(host, [(0, epochs[0] + 1)]) == []
    (row,) = await store.claim(other, [(0, epochs[0] + 1)])
    assert row == ShardRow(0, ShardState.OWNED, epochs[0] + 1, other, other, (other,), 12)


@pytest.mark.parametrize("what", INELIGIBLE)
async def test_a_release_whose_target_may_be_given_nothing_any_more(
    store: Store, host: int, other: int, what: str
) -> None:
    """S11, S13: the target died, was condemned, or began to drain after the move: the shard is free, as without a target."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    await INELIGIBLE[what](store, other)
    assert (await row_of(store, 0)).target == other, "nobody looked yet"
    assert await store.checkpoint(host, [ending(0, epoch, 7, release=True)]) == frozenset()
    assert await row_of(store, 0) == ShardRow(0, ShardState.FREE, epoch + 1, None, None, (), 7)


async def test_a_target_that_drained_for_a_while_gets_its_shard(store: Store, host: int, other: int) -> None:
    """S13: what counts is the target's row at the moment of the release."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    for draining in (True, False):
        await store.set_draining(other, draining)
    await store.checkpoint(host, [ending(0, epoch, 7, release=True)])
    assert (await row_of(store, 0)).assigned == other


async def test_a_repeated_release_changes_nothing(store: Store, host: int, other: int) -> None:
    """PR12, S13: the first one took effect and its answer was lost; neither it nor a late checkpoint touches what is the
    target's now, whether that has claimed or not."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    release = ending(0, epoch, 4, release=True)
    await store.checkpoint(host, [release])
    for _ in range(2):
        before = await row_of(store, 0)
        for late in (release, ending(0, epoch, 9), ending(0, before.epoch, 9, release=True)):
            assert await store.checkpoint(host, [late]) == {0}
        assert await row_of(store, 0) == before
        await store.claim(other, [(0, before.epoch)])
    assert before.state is ShardState.OWNED


async def test_a_release_of_a_shard_that_is_not_owned_hands_nothing_over(store: Store, host: int, other: int) -> None:
    """S13: the target, and anybody else, cannot make the owner give up."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    before = await row_of(store, 0)
    for late in (other, 99):
        assert await store.checkpoint(late, [ending(0, epoch, 9, release=True)]) == {0}
    assert await row_of(store, 0) == before


async def test_two_coordinators_move_one_shard(stores: Stores) -> None:
    """S13: both decided on one epoch and both are taken; the later wish stands, and one host gets the shard."""
    ours, theirs = await stores.open(), await stores.open()
    a, b, c = [await ours.register_host(f"{name}:1", "n", None) for name in "abc"]
    epochs = await own(ours, a)
    for shard, epoch in epochs.items():
        wishes = [ours.move([Assignment(shard, epoch, b)]), theirs.move([Assignment(shard, epoch, c)])]
        assert await asyncio.gather(*wishes) == [{shard}, {shard}]
        wanted = (await row_of(ours, shard)).target
        assert wanted in {b, c}
        await theirs.checkpoint(a, [ending(shard, epoch, 1, release=True)])
        assert (await row_of(ours, shard)).assigned == wanted
        assert [len(await store.claim(wanted, [(shard, epoch + 1)])) for store in (ours, theirs)] == [1, 1]
        assert await theirs.move([Assignment(shard, epoch, c)]) == frozenset(), "decided before the release"
        assert (await row_of(ours, shard)).target is None


async def test_a_move_and_a_release_race(stores: Stores) -> None:
    """S13: the move comes in time and the target gets the shard, or it comes too late and says so."""
    coordinator, source = await stores.open(), await stores.open()
    a, b = await coordinator.register_host("a:1", "n", None), await coordinator.register_host("b:1", "n", None)
    luck = random.Random(20130102)
    outcomes = set()
    for _ in range(30):
        epoch = (await own(coordinator, a, 0))[0]
        calls = [
            coordinator.move([Assignment(0, epoch, b)]),
            source.checkpoint(a, [ending(0, epoch, 1, release=True)]),
        ]
        order = luck.sample([0, 1], 2)
        results = await asyncio.gather(*(calls[i] for i in order))
        in_time = bool(results[order.index(0)])
        heir, state = (b, ShardState.ASSIGNED) if in_time else (None, ShardState.FREE)
        assert await row_of(source, 0) == ShardRow(0, state, epoch + 1, heir, None, (), 1)
        outcomes.add(in_time)
    assert outcomes == {True, False}, "the race was no race"


async def test_a_failover_forgets_the_move(store: Store, host: int, other: int) -> None:
    """S13: the owner dies before it released. Who gets the shard is decided anew, its log is sealed as ever, and neither the
    target nor a late move on the old epoch means anything any more."""
    epoch = (await own(store, host, 0))[0]
    third = await store.register_host("c:1", "node-3", None)
    await store.move([Assignment(0, epoch, other)])
    await store.condemn(host, 0)
    assert await store.assign([Assignment(0, epoch, third)]) == {0}
    assert await row_of(store, 0) == ShardRow(0, ShardState.ASSIGNED, epoch + 1, third, None, (host,), 0)
    assert await store.move([Assignment(0, epoch, other), Assignment(0, epoch + 1, other)]) == frozenset()
    assert await store.checkpoint(host, [ending(0, epoch, 9, release=True)]) == {0}, "the dead owner's release is late"
    (row,) = await store.claim(third, [(0, epoch + 1)])
    assert (row.owners, row.target) == ((host, third), None)


async def test_the_target_takes_over_by_failover(store: Store, host: int, other: int) -> None:
    """S13: the shard is assigned to its own target, since the source died: the target does not stay wanted at itself."""
    epoch = (await own(store, host, 0))[0]
    await store.move([Assignment(0, epoch, other)])
    await store.condemn(host, 0)
    await own(store, other, 0)
    assert await row_of(store, 0) == ShardRow(0, ShardState.OWNED, epoch + 1, other, other, (host, other), 0)
