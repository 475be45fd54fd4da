"""Client sessions: registered, counted, expired by compare-and-set, and never given twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from atoll.persistence.spi import Store

if TYPE_CHECKING:
    from conftest import Stores


async def test_each_session_is_a_new_client(stores: Stores) -> None:
    """PR27: greater than every earlier one, also when all of those are expired and the store was reopened."""
    store = await stores.open()
    first, second = await store.open_session(), await store.open_session()
    assert second > first > 0
    assert await store.expire_sessions([(first, 0), (second, 0)]) == {first, second}
    await store.close()
    assert await (await stores.open()).open_session() > second


async def test_sessions_opened_at_once_are_different_clients(stores: Stores) -> None:
    """PR27: two clients with one ID would get each other's replies."""
    handles = [await stores.open() for _ in range(3)]
    clients = await asyncio.gather(*(handle.open_session() for handle in handles for _ in range(10)))
    assert len(set(clients)) == 30


async def test_touched_sessions_are_renewed_and_missing_ones_named(store: Store) -> None:
    """PR27: a host learns which of its clients have no session any more."""
    clients = [await store.open_session() for _ in range(3)]
    assert await store.touch_sessions(clients[:2]) == frozenset()
    assert await store.touch_sessions([clients[0], 999, 998]) == {999, 998}
    assert await store.touch_sessions([]) == frozenset()
    assert await store.sessions() == {clients[0]: 2, clients[1]: 1, clients[2]: 0}


async def test_only_a_session_that_was_not_touched_expires(store: Store) -> None:
    """PR27: a compare-and-set on the renewals that were observed; an expired client is gone for good."""
    quiet, lively = await store.open_session(), await store.open_session()
    await store.touch_sessions([quiet])
    await store.touch_sessions([lively])
    observed = list((await store.sessions()).items())
    await store.touch_sessions([lively])
    assert await store.expire_sessions([*observed, (999, 0)]) == {quiet, 999}
    assert await store.sessions() == {lively: 2}
    assert await store.touch_sessions([quiet, lively]) == {quiet}
    assert await store.expire_sessions([(quiet, 1)]) == {quiet}, "a repeat says the same"


async def test_thousands_of_sessions_are_touched_and_expired(store: Store) -> None:
    """PR27: more than one transaction's worth, none left out."""
    clients = [await store.open_session() for _ in range(1200)]
    assert await store.touch_sessions(iter([*clients, 5000])) == {5000}
    assert set((await store.sessions()).values()) == {1}
    assert await store.expire_sessions([(client, 1) for client in clients[1:]]) == set(clients[1:])
    assert await store.sessions() == {clients[0]: 1}
