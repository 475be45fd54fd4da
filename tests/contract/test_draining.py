"""What a host's row says beside its lease: that it drains, the version that it runs, its weight."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest
from store_rows import ending, own, row_of

from atoll.persistence.spi import Assignment, HostRow, HostState, ProcessIdentity, ShardState, Store

if TYPE_CHECKING:
    from conftest import Stores


async def test_a_host_says_what_it_runs_and_how_much_it_takes(stores: Stores) -> None:
    """Version and weight stand in its row from the registration on; without them it is one like all others."""
    store = await stores.open()
    process = ProcessIdentity("another-boot", 7, 12.5)
    first = await store.register_host("a:1", "node-1", process, version="2.1.0", weight=2.5)
    second = await store.register_host("b:1", "node-2", None)
    assert await (await stores.open()).hosts() == [
        HostRow(first, "a:1", HostState.LIVE, 0, "node-1", process, draining=False, version="2.1.0", weight=2.5),
        HostRow(second, "b:1", HostState.LIVE, 0, "node-2", None, draining=False, version="", weight=1.0),
    ]


@pytest.mark.parametrize("weight", [0, -1.0, math.inf, math.nan])
async def test_a_weight_that_means_nothing_is_refused(store: Store, weight: float) -> None:
    """S11: shares are computed from weights. Nothing is registered."""
    with pytest.raises(ValueError, match="weight"):
        await store.register_host("a:1", "node", None, weight=weight)
    assert await store.hosts() == []
    assert await store.register_host("a:1", "node", None) == 1


async def test_a_host_drains_and_is_taken_back(stores: Stores) -> None:
    """Every process sees it, and all else in the row stays. A repeat is true again."""
    ours, theirs = await stores.open(), await stores.open()
    host = await ours.register_host("a:1", "node", None, version="2", weight=3.0)
    await ours.renew(host)
    for draining in (True, True, False, False):
        assert await ours.set_draining(host, draining)
        assert await theirs.hosts() == [
            HostRow(host, "a:1", HostState.LIVE, 1, "node", None, draining=draining, version="2", weight=3.0)
        ]


@pytest.mark.parametrize("draining", [True, False])
async def test_only_a_live_host_drains(store: Store, host: int, draining: bool) -> None:
    """S13: a late word about a condemned, sealed or unknown host is refused and changes nothing, also when its row says
    the same already."""
    sealed = await store.register_host("b:1", "node-2", None)
    await own(store, sealed, 0)
    for incarnation in (host, sealed):
        await store.set_draining(incarnation, not draining)
    await store.condemn(host, 0)
    await store.seal(sealed)
    before = await store.hosts()
    assert [row.state for row in before] == [HostState.GONE, HostState.SEALED]
    for incarnation in (host, sealed, 99):
        for word in (draining, not draining):
            assert not await store.set_draining(incarnation, word)
    assert await store.hosts() == before


async def test_a_draining_host_is_given_nothing(store: Store, host: int) -> None:
    """S11: no assignment, whatever the epoch; once taken back it is as good as any."""
    await store.set_draining(host, True)
    assert await store.assign([Assignment(0, 0, host)]) == frozenset()
    assert (await row_of(store, 0)).epoch == 0
    await store.set_draining(host, False)
    assert await store.assign([Assignment(0, 0, host)]) == {0}


async def test_a_draining_host_works_on_with_what_it_has(store: Store, host: int) -> None:
    """S07: it keeps its lease and its shards, claims what it was assigned before, writes, and gives up in its own time."""
    epochs = await own(store, host, 0)
    await store.assign([Assignment(1, 0, host)])
    await store.set_draining(host, True)
    assert await store.renew(host)
    assert [row.owner for row in await store.claim(host, [(1, 1)])] == [host]
    await store.append(host, 1, b"on it goes")
    assert await store.checkpoint(host, [ending(0, epochs[0], 2), ending(1, 1, 0)]) == frozenset()
    assert await store.checkpoint(host, [ending(0, epochs[0], 3, release=True)]) == frozenset()
    assert [row.state for row in await store.shards()][:2] == [ShardState.FREE, ShardState.OWNED]


async def test_a_draining_host_is_condemned_like_any_other(store: Store, host: int) -> None:
    """PR14: that it drains protects nobody from being given up, and is no reason for it."""
    await store.set_draining(host, True)
    await store.renew(host)
    assert not await store.condemn(host, 0)
    assert await store.condemn(host, 1)
    assert [(row.state, row.draining) for row in await store.hosts()] == [(HostState.GONE, True)]


async def test_draining_and_renewals_do_not_undo_each_other(stores: Stores) -> None:
    """S07, PR14: one process says that a host drains while that host renews: every renewal is counted, and the last word stands."""
    ours, theirs = await stores.open(), await stores.open()
    host = await ours.register_host("a:1", "node", None)
    for round_ in range(1, 11):
        draining = round_ % 2 == 0
        done = await asyncio.gather(ours.renew(host), theirs.set_draining(host, draining), ours.renew(host))
        assert done == [True, True, True]
        assert [(row.renewals, row.draining) for row in await ours.hosts()] == [(2 * round_, draining)]
