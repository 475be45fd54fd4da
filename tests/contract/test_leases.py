"""Hosts: incarnations that are never given twice, leases that are counted and not timed, and condemnation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from store_rows import own, row_of

from atoll.persistence.spi import HostState, ProcessIdentity, Store

if TYPE_CHECKING:
    from conftest import Stores


async def test_each_registration_is_a_new_incarnation(stores: Stores) -> None:
    """Greater than every earlier one, also after all of those are sealed; LIVE, no renewals, an empty log."""
    store = await stores.open()
    first = await store.register_host("10.0.0.1:7700", "node-1", ProcessIdentity("another-boot", 7, 12.5))
    await store.seal(first)
    second = await (await stores.open()).register_host("10.0.0.2:7700", "node-2", None)
    assert second > first
    (row,) = await store.hosts()
    assert (row.incarnation, row.address, row.node, row.process) == (second, "10.0.0.2:7700", "node-2", None)
    assert (row.state, row.renewals) == (HostState.LIVE, 0)
    assert await store.read_log(second) == []


async def test_registrations_at_once_get_different_incarnations(stores: Stores) -> None:
    """PR02: a log is made for one incarnation alone."""
    handles = [await stores.open() for _ in range(3)]
    found = await asyncio.gather(*(handle.register_host("a:1", "n", None) for handle in handles for _ in range(3)))
    assert len(set(found)) == 9


async def test_a_live_host_renews(store: Store, host: int) -> None:
    """Each renewal adds one, and the process identity is kept as it was given."""
    assert await store.renew(host)
    assert await store.renew(host)
    assert [row.renewals for row in await store.hosts()] == [2]


async def test_a_condemned_host_cannot_renew(store: Store, host: int) -> None:
    """PR14: a renewal is conditional on LIVE; once condemned, for ever condemned, and nothing changes."""
    await store.renew(host)
    assert await store.condemn(host, 1)
    assert not await store.renew(host)
    assert await store.condemn(host, 99), "it is GONE already, whatever was observed"
    assert [(row.state, row.renewals) for row in await store.hosts()] == [(HostState.GONE, 1)]


async def test_a_host_that_renewed_in_time_is_not_condemned(store: Store, host: int) -> None:
    """PR14: condemnation is a compare-and-set on the counter that was seen unchanged."""
    await store.renew(host)
    assert not await store.condemn(host, 0)
    assert await store.renew(host)
    assert [row.state for row in await store.hosts()] == [HostState.LIVE]


async def _later(call: Coroutine[Any, Any, bool], seconds: float) -> bool:
    await asyncio.sleep(seconds)
    return await call


async def test_renewal_and_condemnation_race_and_one_wins(stores: Stores) -> None:
    """PR14: whoever comes first makes the other fail; never do both succeed on one counter."""
    ours, theirs = await stores.open(), await stores.open()
    luck = random.Random(20130101)
    outcomes = set()
    for _ in range(30):
        host = await ours.register_host("a:1", "n", None)
        calls = [ours.renew(host), theirs.condemn(host, 0)]
        order = luck.sample([0, 1], 2)
        # The second begins up to a few round trips later: a renewal is one, a condemnation is more.
        results = await asyncio.gather(calls[order[0]], _later(calls[order[1]], luck.uniform(0, 0.005)))
        renewed, condemned = results[order.index(0)], results[order.index(1)]
        assert renewed != condemned
        outcomes.add(renewed)
    assert outcomes == {True, False}, "the race was no race"


async def test_unknown_hosts_neither_renew_nor_are_condemned(store: Store) -> None:
    assert not await store.renew(17)
    assert not await store.condemn(17, 0)


async def test_sealed_hosts_are_listed_while_a_shard_still_names_them(store: Store, host: int) -> None:
    """`hosts`: all that are not SEALED, and of the sealed ones those that a successor must still read."""
    await own(store, host, 2)
    other = await store.register_host("b:1", "n", None)
    await store.seal(host)
    await store.seal(other)
    assert [(row.incarnation, row.state) for row in await store.hosts()] == [(host, HostState.SEALED)]
    assert (await row_of(store, 2)).owners == (host,)


async def test_a_sealed_host_cannot_renew_and_counts_as_condemned(store: Store, host: int) -> None:
    """PR02, PR14: SEALED outlives everything."""
    await store.seal(host)
    assert not await store.renew(host)
    assert await store.condemn(host, 0)
    await own(store, await store.register_host("b:1", "n", None), 1)
    assert [row.state for row in await store.hosts()] == [HostState.LIVE]
