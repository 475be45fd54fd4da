"""A store as a whole: walked over page by page, and loaded into a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from store_rows import (
    KIND,
    client,
    commit,
    ending,
    entity,
    letter,
    mail,
    message,
    named,
    own,
    row_of,
    timer,
    without_snapshot,
)

from atoll.actors.errors import IncompatibleStore
from atoll.persistence.spi import CheckpointEnd, Numbers, ShardState, Store, TableWrite, loading_name
from atoll.persistence.tables import Key, Table, TableRow, key_of

if TYPE_CHECKING:
    from conftest import Stores

APP = "bank"
LOADING = loading_name(APP, "1f")
ROWS: dict[Table, list[TableRow]] = {
    Table.ENTITIES: [
        entity("Zoë", 1, kind="A"),
        entity("a", 9, deleted=True),
        without_snapshot("b", 3),
        entity("ü", 2),
    ],
    Table.HISTORY: [commit(1, "b", 1), commit(3, "b", 2), commit(7, "b", 3)],
    Table.CLIENTS: [client(1, 4, 4, 5), client(2, 1)],
    Table.NAMED: [named("a", "order-1"), named("a", "order-2"), named("b", "order-1", 2000)],
    Table.MAILBOX: [mail("a", 8, attempts=2), mail("a", 11), mail("b", 9)],
    Table.OUTBOX: [message(2 << 16), message(2 << 16 | 1), message(11 << 16)],
    Table.TIMERS: [timer("a", "close", 9000), timer("a", "ping", 100), timer("b", "ping", 50)],
    Table.DEAD_LETTERS: [letter(3), letter(7, "Zoë")],
}
"""Some of every table, in order of key."""


def everything(shard: int, epoch: int, position: int) -> TableWrite:
    return TableWrite(
        shard,
        epoch,
        entities=tuple(ROWS[Table.ENTITIES]),
        clients=tuple(ROWS[Table.CLIENTS]),
        named=tuple(ROWS[Table.NAMED]),
        mailbox=tuple(ROWS[Table.MAILBOX]),
        outbox=tuple(ROWS[Table.OUTBOX]),
        timers=tuple(ROWS[Table.TIMERS]),
        dead_letters=tuple(ROWS[Table.DEAD_LETTERS]),
        end=CheckpointEnd(position, tuple(ROWS[Table.HISTORY])),
    )


async def walked(store: Store, table: Table, shard: int, limit: int) -> list[TableRow]:
    found: list[TableRow] = []
    after: Key | None = None
    while page := await store.scan(table, shard, after, limit):
        assert len(page) <= limit
        found += page
        after = key_of(page[-1])
    return found


@pytest.mark.parametrize("table", list(Table))
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_table_is_walked_over_page_by_page(store: Store, host: int, table: Table, limit: int) -> None:
    """J01, J15: pages of any size give each row of that shard once, in order of key; the end is an empty page."""
    epochs = await own(store, host)
    await store.checkpoint(host, [everything(1, epochs[1], 12)])
    assert await walked(store, table, 1, limit) == ROWS[table]
    assert await walked(store, table, 0, limit) == []
    assert await store.scan(table, 1, None, 0) == []
    with pytest.raises(ValueError, match="shard 4"):
        await store.scan(table, 4, None, 1)


async def test_what_was_walked_over_is_loaded_into_a_new_store(stores: Stores) -> None:
    """J13: rows, epochs, positions, sessions and the numbers that were given out are as they were elsewhere, and an
    owner goes on from there."""
    store = await stores.open(LOADING)
    half = CheckpointEnd(3, tuple(ROWS[Table.HISTORY][:2]))
    for _ in range(2):  # a repeat changes nothing
        await store.load([TableWrite(1, 7, tuple(ROWS[Table.ENTITIES]), end=half)])
        await store.load([everything(1, 7, 12), TableWrite(2, 5, end=CheckpointEnd(0))])
    await store.finish_load(APP, Numbers(incarnation=6, client=40), {38: 0, 40: 3})
    store = await stores.reopen(APP)
    await store.finish_load(APP, Numbers(incarnation=6, client=40), {38: 0, 40: 3})
    for table, rows in ROWS.items():
        assert await walked(store, table, 1, 2) == rows
    row = await row_of(store, 1)
    assert (row.state, row.epoch, row.position, row.owners) == (ShardState.FREE, 7, 12, ())
    assert (await row_of(store, 2)).epoch == 5
    assert await store.read_commits(1, KIND, "b", 1) == ROWS[Table.HISTORY][1:]
    assert await store.sessions() == {38: 0, 40: 3}
    assert await store.numbers() == Numbers(6, 40)
    assert await store.open_session() == 41
    assert await store.register_host("a:1", "", None) == 7
    epochs = await own(store, 7, 1)
    assert epochs == {1: 8}
    assert await store.checkpoint(7, [ending(1, 8, 13, commit(13, "b", 4))]) == frozenset()
    assert await store.read_commits(1, KIND, "b", 3) == [commit(13, "b", 4)]


async def test_a_store_that_is_in_use_is_never_loaded_into(store: Store, host: int) -> None:
    """J13: only a store that was opened to be loaded takes rows that no owner wrote."""
    for work in (store.load([everything(0, 1, 12)]), store.finish_load("other", Numbers(9, 9), {1: 0})):
        with pytest.raises(ValueError, match="not being loaded"):
            await work
    assert await walked(store, Table.ENTITIES, 0, 10) == []
    assert await store.numbers() == Numbers(host, 0)


async def test_a_store_that_is_half_loaded_is_refused_to_everybody_else(stores: Stores) -> None:
    """J13: an app cannot run on a part of its data, and no other import goes on with it; the same one does."""
    store = await stores.open(LOADING)
    await store.load([everything(0, 1, 12)])
    for name in (APP, loading_name(APP, "2e")):
        with pytest.raises(IncompatibleStore, match=r"import 1f has not ended"):
            await stores.open(name)
    again = await stores.reopen(LOADING)
    await again.load([everything(0, 1, 12)])
    assert await walked(again, Table.MAILBOX, 0, 2) == ROWS[Table.MAILBOX]


async def test_a_store_in_use_is_not_opened_to_be_loaded(stores: Stores) -> None:
    """J13: an import never begins on a store that an app has."""
    await stores.open(APP)
    with pytest.raises(IncompatibleStore, match="holds"):
        await stores.open(LOADING)


async def test_a_sound_store_is_found_sound(store: Store, host: int) -> None:
    """J14: whatever a checkpoint, a repeat of it, a deletion of history and a release leave behind."""
    epochs = await own(store, host)
    first = TableWrite(1, epochs[1], tuple(ROWS[Table.ENTITIES]), end=CheckpointEnd(3, tuple(ROWS[Table.HISTORY][:2])))
    for write in (first, first, everything(1, epochs[1], 12)):
        await store.checkpoint(host, [write])
    snapshot = entity("b", 4)
    await store.checkpoint(host, [TableWrite(1, epochs[1], (snapshot,), end=CheckpointEnd(13, (commit(13, "b", 4),)))])
    await store.delete_history(1, KIND, "b", 2)
    await store.checkpoint(host, [ending(1, epochs[1], 13, release=True)])
    await store.append(host, 1, b"")
    assert [await store.check(shard) for shard in (None, 0, 1, 2, 3)] == [[]] * 5
    with pytest.raises(ValueError, match="shard 4"):
        await store.check(4)
