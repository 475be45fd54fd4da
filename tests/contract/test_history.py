"""History: the commits of event-sourced entities, per entity by seq and per shard by position."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from store_rows import KIND, commit, ending, entity, own, without_snapshot

from atoll.actors.stored import StoredState
from atoll.persistence.records import EntityRow
from atoll.persistence.spi import CheckpointEnd, Store, TableWrite

if TYPE_CHECKING:
    from conftest import Stores


@pytest.fixture
async def epoch(store: Store, host: int) -> int:
    """Three checkpoints of shard 0: positions 1-30, entity e0, e1, e2 in turn, each with seq 1-10; 0.2 MB at seq 5."""
    epochs = await own(store, host, 0)
    commits = [
        commit(position, f"e{position % 3}", (position + 2) // 3, b"x" * 200_000 if (position + 2) // 3 == 5 else b"")
        for position in range(1, 31)
    ]
    for first, last in ((0, 7), (7, 21), (21, 30)):
        await store.checkpoint(host, [ending(0, epochs[0], last, *commits[first:last])])
    return epochs[0]


@pytest.mark.usefixtures("epoch")
async def test_an_unknown_entity_has_no_history(store: Store) -> None:
    """J02: no history, and no row whose seq could be other than 0."""
    assert await store.read_commits(0, KIND, "nobody") == []
    assert await store.read_commits(1, KIND, "e1") == []
    assert await store.read_commits(0, "Cart", "e1") == []
    assert await store.read_entity(0, KIND, "nobody") is None
    assert await store.read_history(2) == []


@pytest.mark.usefixtures("epoch")
async def test_commits_replay_from_any_seq_to_any_seq_with_a_limit(store: Store) -> None:
    """J01: in order, after_seq < seq <= to_seq, at most `limit`; empty ranges and a limit of 0 give nothing."""

    async def seqs(**which: int) -> list[int]:
        found = await store.read_commits(0, KIND, "e1", **which)
        assert {(c.kind, c.id) for c in found} <= {(KIND, "e1")}
        return [c.seq for c in found]

    for after in range(12):
        for to in range(12):
            for limit in (0, 1, 3, 99):
                expected = [seq for seq in range(1, 11) if after < seq <= to][:limit]
                assert await seqs(after_seq=after, to_seq=to, limit=limit) == expected
    assert await seqs() == list(range(1, 11))
    assert await seqs(after_seq=9) == [10]
    assert await seqs(limit=4) == [1, 2, 3, 4]


async def test_the_highest_seq_is_known_without_history(store: Store, host: int, epoch: int) -> None:
    """J01: an empty answer does not mean a young entity: its row holds the seq."""
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(entity("e1", 10),))])
    assert await store.read_commits(0, KIND, "e1", limit=0) == []
    row = await store.read_entity(0, KIND, "e1")
    assert row is not None
    assert row.seq == 10


@pytest.mark.usefixtures("epoch")
async def test_a_shard_is_read_in_order_of_position(store: Store) -> None:
    """J10: from any position, with any limit, in order and without a hole."""
    for after in range(32):
        for limit in (0, 1, 7, 99, None):
            found = await store.read_history(0, after, limit)
            expected = list(range(after + 1, 31))
            assert [c.position for c in found] == (expected if limit is None else expected[:limit])


async def test_history_is_added_once(store: Store, host: int, epoch: int) -> None:
    """J04: commits at or below p are in the history already; a repeat adds none, and an overlap adds what is new."""
    overlap = [commit(position, f"e{position % 3}", (position + 2) // 3) for position in range(25, 34)]
    for _ in range(2):
        await store.checkpoint(host, [ending(0, epoch, 33, *overlap)])
    assert [c.position for c in await store.read_history(0)] == list(range(1, 34))
    assert [c.seq for c in await store.read_commits(0, KIND, "e0")] == list(range(1, 12))


async def test_other_kinds_of_records_leave_holes_that_are_no_holes(store: Store, host: int) -> None:
    """J10: positions count all records of a shard; only commits of event-sourced entities stand in its history."""
    epochs = await own(store, host, 1)
    await store.checkpoint(host, [ending(1, epochs[1], 9, commit(3, "a", 1), commit(8, "a", 2))])
    await store.checkpoint(host, [ending(1, epochs[1], 15)])
    await store.checkpoint(host, [ending(1, epochs[1], 20, commit(17, "b", 1))])
    assert [c.position for c in await store.read_history(1)] == [3, 8, 17]
    assert [c.position for c in await store.read_history(1, 9)] == [17]
    assert [c.position for c in await store.read_history(1, 3, 1)] == [8]


async def test_a_reader_behind_concurrent_checkpoints_misses_nothing(stores: Stores) -> None:
    """J10: four shards are written at once while a reader follows each: it never sees a position before an earlier one,
    and in the end has them all."""
    writer, reader = await stores.open(), await stores.open()
    host = await writer.register_host("a:1", "n", None)
    epochs = await own(writer, host)
    last = 60

    async def write(shard: int) -> None:
        for position in range(1, last + 1):
            end = CheckpointEnd(position, (commit(position, f"e{position % 4}", position),))
            await writer.checkpoint(host, [TableWrite(shard, epochs[shard], end=end)])

    async def follow(shard: int) -> list[int]:
        seen: list[int] = []
        while not seen or seen[-1] < last:
            seen += [c.position for c in await reader.read_history(shard, seen[-1] if seen else 0)]
            await asyncio.sleep(0)
        return seen

    results = await asyncio.gather(*(follow(shard) for shard in range(4)), *(write(shard) for shard in range(4)))
    assert results[:4] == [list(range(1, last + 1))] * 4


# ---- deleting history


def snapshot(id: str, seq: int, state_seq: int) -> EntityRow:
    """An event-sourced entity's row whose snapshot is as of `state_seq`."""
    return EntityRow(KIND, id, seq, StoredState(1, b"%s@%d" % (id.encode(), state_seq)), state_seq)


async def test_deleting_history_leaves_the_highest_seq_known(store: Store, host: int, epoch: int) -> None:
    """J07, J08: up to any seq, also all of it: its row stays as it is, and so does what its snapshot and later events make
    of the entity; history goes on above."""
    row = snapshot("e1", 10, 10)
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(row,))])
    for through_seq in (0, 3, 3, 5, 1, 9, 10, 99):
        before = [c.seq for c in await store.read_commits(0, KIND, "e1")]
        await store.delete_history(0, KIND, "e1", through_seq)
        assert [c.seq for c in await store.read_commits(0, KIND, "e1")] == [seq for seq in before if seq > through_seq]
        assert await store.read_entity(0, KIND, "e1") == row
        assert await store.read_commits(0, KIND, "e1", after_seq=row.state_seq) == []
    assert await store.read_commits(0, KIND, "e1") == []
    await store.checkpoint(host, [ending(0, epoch, 33, commit(31, "e1", 11), commit(33, "e0", 11))])
    assert [c.seq for c in await store.read_commits(0, KIND, "e1")] == [11]
    assert [c.position for c in await store.read_history(0, 25)] == [26, 27, 29, 30, 31, 33]


async def test_others_keep_their_history(store: Store, host: int, epoch: int) -> None:
    """J07: commits that stood between those that go stay where they were, per entity and per shard."""
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(snapshot("e1", 10, 10),))])
    await store.delete_history(0, KIND, "e1", 8)
    for id in ("e0", "e2"):
        assert [c.seq for c in await store.read_commits(0, KIND, id)] == list(range(1, 11))
    expected = [position for position in range(1, 31) if position % 3 != 1 or position > 24]
    for after in range(32):
        for limit in (1, 4, None):
            found = [c.position for c in await store.read_history(0, after, limit)]
            assert found == [position for position in expected if position > after][:limit]


async def test_what_no_snapshot_covers_is_not_deleted(store: Store, host: int, epoch: int) -> None:
    """J07: the events above the snapshot are the entity; without a row, or without a snapshot, that is all of them."""
    await store.delete_history(0, KIND, "e1", 99)
    assert len(await store.read_commits(0, KIND, "e1")) == 10
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(without_snapshot("e1", 10), snapshot("e2", 10, 4)))])
    for id, first in (("e1", 1), ("e2", 5), ("nobody", 99)):
        await store.delete_history(0, KIND, id, 99)
        assert [c.seq for c in await store.read_commits(0, KIND, id)] == list(range(first, 11))


async def test_a_deleted_entity_needs_no_history(store: Store, host: int, epoch: int) -> None:
    """J07, J09, M20: all of it may go, up to the deletion; what was written anew since then stays."""
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(entity("e1", 11, deleted=True),))])
    await store.delete_history(0, KIND, "e1", 99)
    assert await store.read_commits(0, KIND, "e1") == []
    await store.checkpoint(
        host, [TableWrite(0, epoch, (without_snapshot("e1", 12),), end=CheckpointEnd(40, (commit(40, "e1", 12),)))]
    )
    await store.delete_history(0, KIND, "e1", 99)
    assert [c.seq for c in await store.read_commits(0, KIND, "e1")] == [12]
    row = await store.read_entity(0, KIND, "e1")
    assert row is not None
    assert (row.seq, row.state_seq, row.deleted) == (12, 11, False)


async def test_a_long_history_is_deleted_whole(store: Store, host: int) -> None:
    """J07: spread over more pieces than one transaction rewrites, one for each of many checkpoints."""
    epochs = await own(store, host, 1)
    last = 40
    for position in range(1, last, 2):
        commits = commit(position, "a", position // 2 + 1), commit(position + 1, "b", position // 2 + 1)
        await store.checkpoint(host, [ending(1, epochs[1], position + 1, *commits)])
    await store.checkpoint(host, [TableWrite(1, epochs[1], entities=(snapshot("a", 20, 20), snapshot("b", 20, 20)))])
    await store.delete_history(1, KIND, "a", 18)
    assert [c.seq for c in await store.read_commits(1, KIND, "a")] == [19, 20]
    await store.delete_history(1, KIND, "a", 20)
    assert [c.position for c in await store.read_history(1)] == list(range(2, last + 1, 2))
    await store.delete_history(1, KIND, "b", 20)
    assert await store.read_history(1) == []


async def test_deleted_history_does_not_come_back_with_a_repeated_checkpoint(
    store: Store, host: int, epoch: int
) -> None:
    """J04, J07: commits at or below p are not added again, also when they are gone."""
    await store.checkpoint(host, [TableWrite(0, epoch, entities=(snapshot("e1", 10, 10),))])
    await store.delete_history(0, KIND, "e1", 10)
    await store.checkpoint(host, [ending(0, epoch, 30, commit(25, "e1", 9), commit(28, "e1", 10))])
    assert await store.read_commits(0, KIND, "e1") == []


async def test_a_history_in_many_pieces_is_read_whole(store: Store, host: int) -> None:
    """J01: of an entity that had a commit in each of many checkpoints, whatever the range."""
    epoch = (await own(store, host, 0))[0]
    for position in range(1, 31):
        await store.checkpoint(host, [ending(0, epoch, position, commit(position, "e1", position))])
    assert [c.seq for c in await store.read_commits(0, KIND, "e1")] == list(range(1, 31))
    assert [c.seq for c in await store.read_commits(0, KIND, "e1", 3, 28, 20)] == list(range(4, 24))
    assert await store.read_commits(0, KIND, "e1", 3, 28, 0) == []
