"""Ownership: assignments and claims are compare-and-set on the epoch, and only a released shard has nothing to seal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from store_rows import ending, own, row_of

from atoll.persistence.spi import Assignment, CheckpointEnd, ShardRow, ShardState, Store, TableWrite

if TYPE_CHECKING:
    from conftest import Stores


async def test_a_shard_is_assigned_then_claimed(store: Store, host: int) -> None:
    """FREE -> ASSIGNED (epoch + 1) -> OWNED (same epoch), with the claimer as the newest of `owners`."""
    assert await store.assign([Assignment(3, 0, host)]) == {3}
    assert await row_of(store, 3) == ShardRow(3, ShardState.ASSIGNED, 1, host, None, (), 0)
    taken = await store.claim(host, [(3, 1)])
    assert taken == [ShardRow(3, ShardState.OWNED, 1, host, host, (host,), 0)]
    assert await store.shards() == [*(await store.shards())[:3], taken[0]]


async def test_a_decision_on_another_epoch_is_void(store: Store, host: int) -> None:
    """PR12: one transaction assigns what still is as it was when the decision was made, and says which."""
    assert await store.assign([Assignment(0, 0, host), Assignment(1, 5, host), Assignment(2, 0, host)]) == {0, 2}
    assert await store.assign([Assignment(0, 0, host)]) == frozenset()
    assert [row.epoch for row in await store.shards()] == [1, 0, 1, 0]


async def test_two_coordinators_decide_at_once_and_one_wins(stores: Stores) -> None:
    """A second coordinator does no harm: of two decisions on one epoch one takes effect."""
    ours, theirs = await stores.open(), await stores.open()
    a, b = await ours.register_host("a:1", "n", None), await ours.register_host("b:1", "n", None)
    for shard in range(4):
        won = await asyncio.gather(ours.assign([Assignment(shard, 0, a)]), theirs.assign([Assignment(shard, 0, b)]))
        assert sorted(won, key=len) == [frozenset(), frozenset({shard})]
        assert (await row_of(ours, shard)).assigned == (a if won[0] else b)


async def test_nothing_is_assigned_to_a_host_that_is_not_live(store: Store, host: int) -> None:
    """PR14: condemned, sealed and unknown hosts get nothing."""
    await store.condemn(host, 0)
    sealed = await store.register_host("b:1", "n", None)
    await store.seal(sealed)
    assert await store.assign([Assignment(0, 0, host), Assignment(1, 0, sealed), Assignment(2, 0, 99)]) == frozenset()
    assert {row.epoch for row in await store.shards()} == {0}


async def test_a_host_that_is_not_live_claims_nothing(store: Store, host: int) -> None:
    """PR14: a claim decided before the condemnation is void after it; repeating one is too."""
    await own(store, host, 1)
    await store.assign([Assignment(0, 0, host)])
    await store.condemn(host, 0)
    assert await store.claim(host, [(0, 1), (1, 1)]) == []
    assert (await row_of(store, 0)).state is ShardState.ASSIGNED


async def test_only_the_assigned_host_claims_at_exactly_the_decided_epoch(store: Store, host: int) -> None:
    """PR11: an incarnation that slept before its claim cannot claim what has been decided anew since."""
    other = await store.register_host("b:1", "n", None)
    await store.assign([Assignment(0, 0, host)])
    assert await store.claim(other, [(0, 1)]) == []
    assert await store.claim(host, [(0, 0), (0, 2), (1, 0)]) == []
    await store.assign([Assignment(0, 1, other)])
    assert await store.claim(host, [(0, 1)]) == [], "decided anew"
    assert [row.owner for row in await store.claim(other, [(0, 2)])] == [other]


async def test_a_repeated_claim_returns_the_row_again(store: Store, host: int) -> None:
    """The outcome of the first one was unknown; nothing is done twice."""
    await store.assign([Assignment(0, 0, host)])
    first = await store.claim(host, [(0, 1)])
    assert await store.claim(host, [(0, 1)]) == first
    assert first[0].owners == (host,)


async def test_owners_gather_until_one_of_them_has_brought_the_tables_up_to_date(store: Store, host: int) -> None:
    """PR01, PR08, J16: after two failovers both earlier owners are named, the newest last; p stays as it was. The end of
    a checkpoint makes the owner the only one."""
    epochs = await own(store, host, 0)
    await store.checkpoint(host, [ending(0, epochs[0], 7)])
    second = await store.register_host("b:1", "n", None)
    third = await store.register_host("c:1", "n", None)
    await store.condemn(host, 0)
    await own(store, second, 0)
    await store.condemn(second, 0)
    epochs = await own(store, third, 0)
    row = await row_of(store, 0)
    assert (row.owners, row.position) == ((host, second, third), 7)
    assert await store.checkpoint(third, [ending(0, epochs[0], 9)]) == frozenset()
    row = await row_of(store, 0)
    assert (row.owners, row.position, row.state) == ((third,), 9, ShardState.OWNED)


async def test_a_shard_that_comes_back_to_a_former_owner_names_it_once(store: Store, host: int) -> None:
    """`owners` holds each incarnation once, the claimer last."""
    other = await store.register_host("b:1", "n", None)
    await own(store, host, 0)
    await own(store, other, 0)
    await own(store, host, 0)
    assert (await row_of(store, 0)).owners == (other, host)


async def test_a_released_shard_has_nothing_to_seal(store: Store, host: int) -> None:
    """PR12: the source's own compare-and-set frees the shard: owners empty, epoch + 1, p as given. The row alone says so."""
    epochs = await own(store, host, 0, 1)
    assert await store.checkpoint(host, [ending(0, epochs[0], 12, release=True)]) == frozenset()
    assert await row_of(store, 0) == ShardRow(0, ShardState.FREE, 2, None, None, (), 12)
    assert (await row_of(store, 1)).owners == (host,)
    other = await store.register_host("b:1", "n", None)
    await own(store, other, 0)
    assert (await row_of(store, 0)).owners == (other,)


async def test_a_release_by_somebody_who_lost_the_shard_changes_nothing(store: Store, host: int) -> None:
    """PR12: the compare-and-set is on owner and epoch; also a repeat of one's own release changes nothing."""
    epochs = await own(store, host, 0)
    await store.checkpoint(host, [ending(0, epochs[0], 3, release=True)])
    other = await store.register_host("b:1", "n", None)
    await own(store, other, 0)
    before = await row_of(store, 0)
    for stale in (epochs[0], before.epoch):
        assert await store.checkpoint(host, [ending(0, stale, 9, release=True)]) == {0}
    assert await row_of(store, 0) == before


async def test_an_assignment_takes_a_claimed_shard_from_its_owner(store: Store, host: int) -> None:
    """OWNED -> ASSIGNED: no owner any more, but it stays among `owners`, so its log is sealed before anything is read."""
    await own(store, host, 0)
    other = await store.register_host("b:1", "n", None)
    await store.condemn(host, 0)
    await store.assign([Assignment(0, 1, other)])
    assert await row_of(store, 0) == ShardRow(0, ShardState.ASSIGNED, 2, other, None, (host,), 0)


async def test_a_log_is_finished_once_its_host_has_ended_and_no_shard_names_it(store: Store, host: int) -> None:
    """J16, PR04: whoever tidies up is told only of logs of which every shard is past what stands in them."""
    assert await store.finished_logs() == []
    await store.assign([Assignment(0, 0, host)])
    await store.claim(host, [(0, 1)])
    assert await store.condemn(host, 0)
    assert await store.finished_logs() == [], "its successor has not written what it took from there"
    successor = await store.register_host("b:1", "n", None)
    await store.assign([Assignment(0, 1, successor)])
    await store.claim(successor, [(0, 2)])
    await store.seal(host)
    assert await store.finished_logs() == []
    await store.checkpoint(successor, [TableWrite(0, 2, end=CheckpointEnd(0))])
    assert await store.finished_logs() == [host]
