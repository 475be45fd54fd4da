"""A pin stands beside a shard's ownership: it is set and taken away by itself, and outlives every owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from store_rows import ending, own, row_of

from atoll.persistence.spi import Assignment, Store

if TYPE_CHECKING:
    from conftest import Stores


@pytest.mark.parametrize("state", ["free", "assigned", "owned"])
async def test_a_pin_is_set_and_taken_away_in_every_state(store: Store, host: int, state: str) -> None:
    """S11: nothing else of the row changes, its epoch neither: a decision that was made before it still holds. A repeat
    says that it changed nothing."""
    if state == "assigned":
        await store.assign([Assignment(1, 0, host)])
    elif state == "owned":
        await own(store, host, 1)
    before = await store.shards()
    assert {row.pin for row in before} == {None}
    for pin in ("node-1", "", "ein Knoten, Zoë", None):
        assert await store.pin(1, pin)
        assert await store.shards() == [before[0], replace(before[1], pin=pin), *before[2:]]
        assert not await store.pin(1, pin)


async def test_a_pin_outlives_every_owner_and_every_process(stores: Stores) -> None:
    """S11, S15: through claim, checkpoint, a planned move, a release to nobody and a failover; and in a store that was
    closed and opened again."""
    store = await stores.open()
    a, b = await store.register_host("a:1", "node-1", None), await store.register_host("b:1", "node-2", None)
    await store.pin(0, "node-1")
    epoch = (await own(store, a, 0))[0]
    await store.move([Assignment(0, epoch, b)])
    await store.checkpoint(a, [ending(0, epoch, 3)])
    await store.checkpoint(a, [ending(0, epoch, 4, release=True)])
    assert [row.owner for row in await store.claim(b, [(0, epoch + 1)])] == [b]
    await store.checkpoint(b, [ending(0, epoch + 1, 5, release=True)])
    epoch = (await own(store, b, 0))[0]
    await store.condemn(b, 0)
    assert await store.assign([Assignment(0, epoch, a)]) == {0}
    assert [row.pin for row in await (await stores.open()).shards()] == ["node-1", None, None, None]


async def test_pins_and_decisions_do_not_undo_each_other(stores: Stores) -> None:
    """S13: one process pins a shard while others assign, move and release it: both words stand."""
    ours, theirs = await stores.open(), await stores.open()
    a, b = await ours.register_host("a:1", "n", None), await ours.register_host("b:1", "n", None)
    for round_ in range(5):
        pin = f"node-{round_}"
        epoch = (await row_of(ours, 0)).epoch
        assert await asyncio.gather(ours.assign([Assignment(0, epoch, a)]), theirs.pin(0, pin)) == [{0}, True]
        await ours.claim(a, [(0, epoch + 1)])
        moved = await asyncio.gather(ours.pin(0, None), theirs.move([Assignment(0, epoch + 1, b)]))
        assert moved == [True, {0}]
        release = ending(0, epoch + 1, round_, release=True)
        assert await asyncio.gather(ours.checkpoint(a, [release]), theirs.pin(0, pin)) == [frozenset(), True]
        row = await row_of(ours, 0)
        assert (row.pin, row.assigned, row.epoch) == (pin, b, epoch + 2)


async def test_a_shard_that_does_not_exist_is_not_pinned(store: Store) -> None:
    """The caller hashed by another shard count."""
    for shard in (-1, 4):
        with pytest.raises(ValueError, match="does not exist"):
            await store.pin(shard, "")
