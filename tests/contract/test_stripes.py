"""A store may be one of several databases of an app: it holds its own shards only, and knows its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from atoll.actors.errors import IncompatibleStore
from atoll.persistence.records import EntityRow
from atoll.persistence.spi import Assignment, CheckpointEnd, ShardState, TableWrite
from atoll.persistence.stripes import Stripe

if TYPE_CHECKING:
    from conftest import Stores

SECOND = Stripe(1, 3, "f1")
"""Of an app with eight shards: 1, 4 and 7."""


async def test_a_stripe_has_the_rows_of_its_shards_under_the_numbers_of_the_app(stores: Stores) -> None:
    """J13: only they can be given, claimed, written and read; what another database holds is refused, not made up."""
    store = await stores.open(shards=8, stripe=SECOND)
    assert store.stripe == SECOND
    assert [row.shard for row in await store.shards()] == [1, 4, 7]
    host = await store.register_host("127.0.0.1:1", "node", None)
    assert await store.assign([Assignment(7, 0, host)]) == {7}
    (row,) = await store.claim(host, [(7, 1)])
    assert (row.shard, row.state) == (7, ShardState.OWNED)
    write = TableWrite(7, 1, (EntityRow("Account", "alice", 1, 3, None, 0),), end=CheckpointEnd(1))
    assert await store.checkpoint(host, [write]) == frozenset()
    assert [shard.position for shard in await store.shards()] == [0, 0, 1]
    assert [work.shard for work in await store.read_pending([7, 1])] == [7, 1]
    for stranger in (0, 2, 8):
        with pytest.raises(ValueError, match="does not exist"):
            await store.assign([Assignment(stranger, 0, host)])
        with pytest.raises(ValueError, match="does not exist"):
            await store.read_entity(stranger, "Account", "alice")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Stripe(0, 3, "f1"), "was made as database 2 of 3, and is named as number 1: .* in the order"),
        (Stripe(1, 2, "f1"), "was made as database 2 of 3, and 2 are named; .* name all 3, in the order"),
        (Stripe(1, 4, "f1"), "was made as database 2 of 3, and 4 are named; .* name all 3"),
        (Stripe(), "was made as database 2 of 3, and 1 is named; .* name all 3"),
        (Stripe(1, 3, "f2"), "together with others"),
    ],
    ids=["another place", "one is missing", "one too many", "alone", "another family"],
)
async def test_a_stripe_that_is_named_as_another_is_refused(stores: Stores, asked: Stripe, told: str) -> None:
    """J13: with what to do; and it still opens as what it is, also for who does not know its family."""
    await stores.open(shards=8, stripe=SECOND)
    with pytest.raises(IncompatibleStore, match=told):
        await stores.open(shards=8, stripe=asked)
    for right in (SECOND, Stripe(1, 3)):
        assert (await stores.open(shards=8, stripe=right)).stripe == SECOND


async def test_a_store_that_is_alone_cannot_become_one_of_several(stores: Stores) -> None:
    """J13: the number of databases is fixed at creation."""
    await stores.open()
    with pytest.raises(IncompatibleStore, match=r"was made as database 1 of 1, and 2 are named; .* name it alone"):
        await stores.open(stripe=Stripe(0, 2))


async def test_more_databases_than_shards_are_refused(stores: Stores) -> None:
    """A database without a shard would be one that nobody needs: nothing is created."""
    with pytest.raises(ValueError, match="4 shards cannot lie in 5 databases"):
        await stores.open(stripe=Stripe(0, 5))
    assert [row.shard for row in await (await stores.open()).shards()] == [0, 1, 2, 3]
