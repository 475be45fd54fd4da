"""A store is made once, for one app and one shard count, and knows it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from atoll.actors.errors import IncompatibleStore
from atoll.persistence.spi import ShardState, Store

if TYPE_CHECKING:
    from conftest import Stores


async def test_a_new_store_has_free_shards_and_nobody_in_it(store: Store) -> None:
    """Creation: one row per shard, FREE, epoch 0, p 0; no hosts, no sessions."""
    rows = await store.shards()
    assert [row.shard for row in rows] == [0, 1, 2, 3]
    assert {(row.state, row.epoch, row.assigned, row.owner, row.owners, row.position) for row in rows} == {
        (ShardState.FREE, 0, None, None, (), 0)
    }
    assert await store.hosts() == []
    assert await store.sessions() == {}


@pytest.mark.parametrize(("app", "shards"), [("shop", 4), ("bank", 8)], ids=["another app", "another shard count"])
async def test_a_store_of_something_else_is_refused_and_not_touched(stores: Stores, app: str, shards: int) -> None:
    """J13: another app or shard count is refused, the message says what to do, and the store serves its own app on."""
    first = await stores.open()
    host = await first.register_host("127.0.0.1:1", "node", None)
    await first.close()
    with pytest.raises(IncompatibleStore, match=r"another|new folder"):
        await stores.open(app, shards)
    again = await stores.open()
    assert [row.incarnation for row in await again.hosts()] == [host]
    assert len(await again.shards()) == 4


async def test_many_open_a_new_store_at_once(stores: Stores) -> None:
    """Creation by several processes at the same moment: all succeed, on one store."""
    handles = await asyncio.gather(*(stores.open() for _ in range(4)))
    hosts = [await handle.register_host("127.0.0.1:1", "node", None) for handle in handles]
    assert len(set(hosts)) == 4
    assert [row.incarnation for row in await handles[0].hosts()] == sorted(hosts)


async def test_closing_loses_nothing_and_may_be_repeated(stores: Stores) -> None:
    """Close commits nothing and loses nothing; a second close is nothing."""
    first = await stores.open()
    host = await first.register_host("127.0.0.1:1", "node", None)
    await first.append(host, 1, b"one")
    client = await first.open_session()
    await first.close()
    await first.close()
    again = await stores.open()
    assert [(row.n, row.content) for row in await again.read_log(host)] == [(1, b"one")]
    assert await again.sessions() == {client: 0}


async def test_a_shard_that_does_not_exist_is_a_mistake_of_the_caller(store: Store, host: int) -> None:
    """Who hashes by another shard count is told so; nothing is read as another shard."""
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="does not exist"):
            await store.claim(host, [(wrong, 1)])
        with pytest.raises(ValueError, match="does not exist"):
            await store.read_clients(wrong)
