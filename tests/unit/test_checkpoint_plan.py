"""The plan of a checkpoint: small transactions, in key order, repeatable, the end last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.actors.stored import StoredState
from atoll.persistence.checkpoint import ShardCheckpoint, plan
from atoll.persistence.overlay import Dirty
from atoll.persistence.records import ClientRow, Record, RecordedReply
from atoll.persistence.spi import CheckpointEnd, TableWrite

REPLY = RecordedReply(0, b"r" * 50, 0)


def part(shard: int, ids: list[str], *, named: int = 0, size: int = 10) -> ShardCheckpoint:
    dirty = Dirty()
    for position, id in enumerate(ids, 1):
        made = Record(shard, position, "Box", id, 1, 1, StoredState(1, b"s" * size))
        if position <= named:
            made.reply, made.command_id = REPLY, f"order-{position}"
        dirty.lay(made, 0)
    clients = (ClientRow(7, 1, ((1, REPLY),)),)
    return ShardCheckpoint(shard, 4, len(ids), dirty, clients, (9,), 55)


ids = st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=30)
parts = st.lists(st.builds(lambda ids, named: (ids, named), ids, st.integers(0, 30)), min_size=1, max_size=4).map(
    lambda shards: [part(number, ids, named=named) for number, (ids, named) in enumerate(shards)]
)


@given(parts, st.integers(1, 8))
def test_everything_is_written_once_within_the_caps_with_the_end_last(
    parts: list[ShardCheckpoint], rows_max: int
) -> None:
    """PR08, J04: per shard its entities and named replies in key order, and in the last transaction of the shard p with
    clients and history."""
    transactions = list(plan(parts, rows_max, 10**9))
    assert transactions == list(plan(list(reversed(parts)), rows_max, 10**9)), "the same again, in order of shard"
    for transaction in transactions:
        rows = sum(len(write.entities) + len(write.named) for write in transaction)
        assert rows <= rows_max
    for one in parts:
        writes = [write for transaction in transactions for write in transaction if write.shard == one.shard]
        assert all(write.epoch == 4 for write in writes)
        entities = [row.id for write in writes for row in write.entities]
        assert entities == sorted(id for _, id in one.dirty.entities)
        named = [(row.id, row.command_id) for write in writes for row in write.named]
        assert named == sorted((id, command_id) for _, id, command_id in one.dirty.named)
        assert [write.end for write in writes[:-1]] == [None] * (len(writes) - 1)
        assert writes[-1].end == CheckpointEnd(one.position)
        assert [write.clients for write in writes if write.clients] == [one.clients]
        assert writes[-1].clients == one.clients
        assert writes[-1].forgotten_clients == (9,)
        assert writes[-1].forget_named_before_ms == 55


def test_bytes_are_capped_and_a_large_row_goes_alone() -> None:
    """A lock on the tables is short: other hosts wait behind it."""
    transactions = list(plan([part(0, list("abcdef"), size=1000)], 500, 2500))
    sizes = [sum(len(row.state.data) for write in t for row in write.entities if row.state) for t in transactions]
    assert sum(sizes) == 6000
    assert max(sizes) <= 2500
    alone = list(plan([part(0, list("ab"), size=10_000)], 500, 2500))
    assert [len(write.entities) for t in alone for write in t] == [1, 1]


def test_many_small_shards_share_transactions() -> None:
    """256 shards with one change each are no 256 transactions."""
    transactions = list(plan([part(shard, ["x"]) for shard in range(60)], 30, 10**9))
    assert len(transactions) == 6
    assert sum(len(transaction) for transaction in transactions) == 60


def test_a_release_and_an_empty_shard_still_end() -> None:
    """PR13: a release with nothing to write moves p and gives the shard up all the same."""
    empty = ShardCheckpoint(3, 4, 17, Dirty(), (), release=True)
    assert list(plan([empty], 10, 100)) == [[TableWrite(3, 4, end=CheckpointEnd(17, (), release=True))]]


def test_nothing_to_do_is_no_transaction() -> None:
    assert list(plan([], 10, 100)) == []
