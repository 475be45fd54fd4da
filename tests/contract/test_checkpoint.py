"""Tables: brought up to date by the owner alone, and never by something older over something newer."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from store_rows import KIND, client, commit, ending, entity, named, own, row_of, without_snapshot

from atoll.actors.stored import StoredState
from atoll.persistence.records import EntityRow
from atoll.persistence.spi import Assignment, CheckpointEnd, ShardState, Store, TableWrite

if TYPE_CHECKING:
    from conftest import Stores


async def test_rows_are_read_back_as_they_were_written(stores: Stores) -> None:
    """Entities, clients and named replies survive a reopen, each under its own key and shard."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    epochs = await own(store, host)
    write = TableWrite(
        1,
        epochs[1],
        entities=(entity("a", 3), entity("b", 1)),
        clients=(client(7, 2, 2, 3),),
        named=(named("a", "order"),),
    )
    assert await store.checkpoint(host, [write]) == frozenset()
    await store.close()
    store = await stores.open()
    assert await store.read_entity(1, KIND, "a") == entity("a", 3)
    assert await store.read_entity(1, KIND, "b") == entity("b", 1)
    assert await store.read_clients(1) == [client(7, 2, 2, 3)]
    assert await store.read_named(1, KIND, "a", "order") == named("a", "order")
    for shard, kind, id in ((0, KIND, "a"), (1, "Cart", "a"), (1, KIND, "A")):
        assert await store.read_entity(shard, kind, id) is None
    assert await store.read_clients(0) == []
    assert await store.read_named(1, KIND, "b", "order") is None
    assert await store.read_named(1, KIND, "a", "Order") is None


@pytest.mark.parametrize("data", [b"", b"\x00", b"x" * (1 << 20)], ids=["empty", "one byte", "1 MiB"])
@pytest.mark.parametrize("id", ["x", "\U0001f40b" * 63 + "abc", "a\x00b", "a/b'\"%_\\", "é", "e\u0301"])
async def test_extreme_states_and_ids(store: Store, host: int, id: str, data: bytes) -> None:
    """J11: states of 0 bytes to 1 MiB under IDs of up to 255 bytes, NUL and quotes among them; no two are one."""
    epochs = await own(store, host, 0)
    row = entity(id, 1, data)
    await store.checkpoint(
        host, [TableWrite(0, epochs[0], entities=(row, entity(id + "!", 2)), named=(named(id, id),))]
    )
    assert await store.read_entity(0, KIND, id) == row
    assert await store.read_named(0, KIND, id, id) == named(id, id)
    assert await store.read_entity(0, KIND, id[:-1]) is None


async def test_nothing_older_overwrites_anything_newer(store: Store, host: int) -> None:
    """J04, J08: the newest seq wins in whatever order the rows come; an equal one changes nothing."""
    epochs = await own(store, host, 0)
    order = [3, 1, 5, 2, 5, 4]
    for seq in order:
        await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("a", seq),))])
    assert await store.read_entity(0, KIND, "a") == entity("a", 5)
    await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("a", 5, b"other bytes"),))])
    assert await store.read_entity(0, KIND, "a") == entity("a", 5)


async def test_events_without_a_snapshot_leave_the_snapshot_as_it_is(store: Store, host: int) -> None:
    """J08: seq moves on, state and state_seq stay; the next snapshot replaces both, and an old row changes nothing."""
    epochs = await own(store, host, 0)

    async def write(row: EntityRow) -> EntityRow | None:
        await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("other", 1), row))])
        return await store.read_entity(0, KIND, "a")

    assert await write(without_snapshot("a", 2)) == without_snapshot("a", 2)
    snapshot = EntityRow(KIND, "a", 12, StoredState(2, b"as of ten"), 10)
    assert await write(snapshot) == snapshot
    after = replace(without_snapshot("a", 15), state=snapshot.state, state_seq=10)
    assert await write(without_snapshot("a", 15)) == after
    assert await write(without_snapshot("a", 14)) == after
    assert await write(snapshot) == after
    newer = EntityRow(KIND, "a", 20, StoredState(2, b"as of twenty"), 20)
    assert await write(newer) == newer


async def test_a_deleted_entity_keeps_its_seq(store: Store, host: int) -> None:
    """PR09: a row without state stays behind, so that the version goes on and an older state cannot come back."""
    epochs = await own(store, host, 0)
    gone = entity("a", 4, deleted=True)
    await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("a", 3),))])
    await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(gone,))])
    await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("a", 3),))])
    assert await store.read_entity(0, KIND, "a") == gone
    await store.checkpoint(host, [TableWrite(0, epochs[0], entities=(entity("a", 5),))])
    assert await store.read_entity(0, KIND, "a") == entity("a", 5)


async def test_a_floor_is_never_lowered(store: Store, host: int) -> None:
    """PR19: floor and replies are one row; an older row as a whole leaves the newer one as it is, an equal floor is the
    newer knowledge."""
    epochs = await own(store, host, 0)
    for row in (client(1, 5, 5, 6), client(1, 4, 4, 5, 6, 7), client(2, 1)):
        await store.checkpoint(host, [TableWrite(0, epochs[0], clients=(row,))])
    assert await store.read_clients(0) == [client(1, 5, 5, 6), client(2, 1)]
    await store.checkpoint(host, [TableWrite(0, epochs[0], clients=(client(1, 5, 5, 6, 7), client(2, 3)))])
    assert await store.read_clients(0) == [client(1, 5, 5, 6, 7), client(2, 3)]


async def test_forgotten_clients_are_gone(store: Store, host: int) -> None:
    """PR27: their rows go with a checkpoint of each shard, of that shard only."""
    epochs = await own(store, host, 0, 1)
    rows = (client(1, 1), client(2, 1), client(3, 1))
    await store.checkpoint(host, [TableWrite(shard, epochs[shard], clients=rows) for shard in (0, 1)])
    await store.checkpoint(host, [TableWrite(0, epochs[0], forgotten_clients=(1, 3, 9))])
    assert await store.read_clients(0) == [client(2, 1)]
    assert await store.read_clients(1) == list(rows)


async def test_a_named_reply_is_written_once_and_kept_for_its_time(store: Store, host: int) -> None:
    """The first reply under a command ID stays; those older than the retention are dropped, of that shard only."""
    epochs = await own(store, host, 0, 1)
    first = (named("a", "x", 1000), named("a", "y", 2000), named("b", "x", 3000))
    await store.checkpoint(host, [TableWrite(shard, epochs[shard], named=first) for shard in (0, 1)])
    await store.checkpoint(
        host, [TableWrite(0, epochs[0], named=(named("a", "y", 9000, "other"),), forget_named_before_ms=2000)]
    )
    assert await store.read_named(0, KIND, "a", "x") is None
    assert await store.read_named(0, KIND, "a", "y") == named("a", "y", 2000)
    assert await store.read_named(0, KIND, "b", "x") == named("b", "x", 3000)
    assert await store.read_named(1, KIND, "a", "x") == named("a", "x", 1000)
    gone = ((KIND, "a", "y"), (KIND, "a", "nobody's"))
    await store.checkpoint(host, [TableWrite(0, epochs[0], named_gone=gone)])
    assert await store.read_named(0, KIND, "a", "y") is None
    assert await store.read_named(0, KIND, "b", "x") == named("b", "x", 3000)
    assert await store.read_named(1, KIND, "a", "y") == named("a", "y", 2000)


# ---- who may


@pytest.mark.parametrize("by", ["a zombie", "an old epoch", "an assigned host before its claim", "nobody's shard"])
async def test_only_the_owner_at_its_epoch_writes(store: Store, host: int, by: str) -> None:
    """PR07: a shard whose row is not OWNED by the writer at its epoch is left out whole, of every kind of row, and said;
    the others of the same transaction are written."""
    other = await store.register_host("b:1", "n", None)
    epochs = await own(store, host, 0, 1)
    await store.checkpoint(host, [TableWrite(0, epochs[0], (entity("a", 1),), (client(1, 1, 1),))])
    if by == "a zombie":
        epochs |= await own(store, other, 0)
        epochs[0] -= 1
    elif by == "an old epoch":
        await own(store, host, 0)
    elif by == "an assigned host before its claim":
        await store.assign([Assignment(0, epochs[0], host)])
        epochs[0] += 1
    else:
        await store.checkpoint(host, [ending(0, epochs[0], 1, release=True)])
    before = await row_of(store, 0)
    everything = TableWrite(
        0,
        epochs[0],
        entities=(entity("a", 99), entity("new", 1)),
        clients=(client(1, 50), client(2, 1)),
        forgotten_clients=(1,),
        named=(named("a", "n"),),
        forget_named_before_ms=1,
        end=CheckpointEnd(99, (commit(50, "a", 99),)),
    )
    allowed = TableWrite(1, epochs[1], entities=(entity("a", 7),))
    assert await store.checkpoint(host, [everything, allowed]) == {0}
    assert await store.read_entity(0, KIND, "a") == entity("a", 1)
    assert await store.read_entity(0, KIND, "new") is None
    assert await store.read_clients(0) == [client(1, 1, 1)]
    assert await store.read_named(0, KIND, "a", "n") is None
    assert await store.read_history(0) == []
    assert await row_of(store, 0) == before
    assert await store.read_entity(1, KIND, "a") == entity("a", 7)


async def test_checkpoints_and_claims_race_and_never_mix(stores: Stores) -> None:
    """PR07: once a successor's claim has returned, no row of the old owner's checkpoint appears any more."""
    old, new = await stores.open(), await stores.open()
    a, b = await old.register_host("a:1", "n", None), await new.register_host("b:1", "n", None)
    outcomes = set()
    for round_ in range(1, 21):
        epoch = (await own(old, a, 0))[0]
        await new.assign([Assignment(0, epoch, b)]) if round_ % 2 else None
        claim = new.claim(b, [(0, epoch + 1)])
        write = old.checkpoint(a, [TableWrite(0, epoch, entities=(entity("x", round_),))])
        taken, refused = await asyncio.gather(claim, write)
        assert bool(taken) == bool(round_ % 2)
        assert bool(refused) == bool(taken), "assigned away before both began"
        seen = await old.read_entity(0, KIND, "x")
        assert (seen is not None and seen.seq == round_) == (not refused)
        outcomes.add(bool(refused))
    assert outcomes == {True, False}


# ---- the end of a checkpoint


async def test_p_never_goes_back(store: Store, host: int) -> None:
    """PR08: an older end, repeated after a newer one, moves nothing."""
    epochs = await own(store, host, 0)
    for position in (5, 9, 7):
        await store.checkpoint(host, [ending(0, epochs[0], position)])
    row = await row_of(store, 0)
    assert (row.position, row.state, row.owners) == (9, ShardState.OWNED, (host,))


async def test_a_checkpoint_stopped_anywhere_and_repeated_is_one_done_once(stores: Stores) -> None:
    """J04, PR08: with the repeat from the start after any number of its transactions, rows, history and p are the same.
    Until the last one p has not moved, so recovery still lays the log's tail over what is partly there."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    epochs = await own(store, host)
    commits = tuple(commit(position, f"e{position % 3}", position // 3 + 1) for position in range(1, 20))

    def plan(shard: int) -> list[TableWrite]:
        epoch = epochs[shard]
        return [
            TableWrite(shard, epoch, entities=(entity("a", 5), entity("b", 2))),
            TableWrite(shard, epoch, entities=(entity("c", 9),), named=(named("a", "n"),)),
            TableWrite(shard, epoch, clients=(client(1, 3, 3, 4),), end=CheckpointEnd(20, commits)),
        ]

    for shard, stop in enumerate((0, 1, 2, 3)):
        for write in plan(shard)[:stop]:
            await store.checkpoint(host, [write])
        row = await row_of(store, shard)
        assert row.position == (20 if stop == 3 else 0)
        for write in plan(shard):
            assert await store.checkpoint(host, [write]) == frozenset()
    for shard in range(4):
        found = [await store.read_entity(shard, KIND, id) for id in "abc"]
        assert found == [entity("a", 5), entity("b", 2), entity("c", 9)]
        assert await store.read_clients(shard) == [client(1, 3, 3, 4)]
        assert await store.read_history(shard) == list(commits)
        assert [c.seq for c in await store.read_commits(shard, KIND, "e1")] == [1, 2, 3, 4, 5, 6, 7]
        assert (await row_of(store, shard)).position == 20


async def test_random_repeats_of_checkpoints_end_like_one_run(store: Store, host: int) -> None:
    """J04: late and repeated transactions of a checkpoint, in any order that one owner could send them, change nothing."""
    seed = 2013
    luck = random.Random(seed)
    epochs = await own(store, host, 0)
    sent: list[TableWrite] = []
    newest: dict[str, int] = {}
    for seq in range(1, 60):
        id = luck.choice("abcd")
        newest[id] = seq
        sent.append(TableWrite(0, epochs[0], entities=(entity(id, seq),), clients=(client(1, seq, seq),)))
        for write in [sent[-1], *luck.choices(sent, k=luck.randrange(3))]:
            await store.checkpoint(host, [write])
    for id, seq in newest.items():
        assert await store.read_entity(0, KIND, id) == entity(id, seq), seed
    assert await store.read_clients(0) == [client(1, 59, 59)], seed


@pytest.mark.parametrize(
    "commits",
    [(commit(2, "a", 1), commit(1, "a", 2)), (commit(1, "a", 1), commit(1, "b", 1)), (commit(6, "a", 1),)],
    ids=["out of order", "one position twice", "above the end"],
)
async def test_history_out_of_order_is_a_mistake_and_writes_nothing(store: Store, host: int, commits: tuple) -> None:
    """J10: history that does not fit p would be lost or doubled; the whole transaction is refused."""
    epochs = await own(store, host, 0, 1)
    fine = TableWrite(1, epochs[1], entities=(entity("a", 1),))
    with pytest.raises(ValueError, match="order of position"):
        await store.checkpoint(host, [fine, ending(0, epochs[0], 5, *commits)])
    assert await store.read_entity(1, KIND, "a") is None
    assert await store.read_history(0) == []
    assert (await row_of(store, 0)).position == 0
