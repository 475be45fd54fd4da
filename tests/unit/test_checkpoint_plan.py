"""The plan of a checkpoint: small transactions, in key order, repeatable, the end last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_rows import KIND, accepted, letter, mail, message, timer

from atoll.actors.stored import StoredState
from atoll.persistence.checkpoint import ShardCheckpoint, plan
from atoll.persistence.overlay import Dirty
from atoll.persistence.records import ClientRow, Delivery, OutboxRow, Record, RecordedReply, outbox_number
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


# ---- pending work

PENDING = (
    "mailbox",
    "mailbox_done",
    "mailbox_attempts",
    "outbox",
    "outbox_done",
    "timers",
    "timers_gone",
    "timers_cleared",
    "dead_letters",
    "letters_gone",
)


def with_pending_work(timers: int = 2) -> Dirty:
    """Something of every kind: new and still there, and old and over. Entity `c` was deleted, and has so many timers
    again."""
    dirty = Dirty()
    for position, id in ((51, "b"), (52, "a"), (53, "a")):
        dirty.lay(Record(0, position, KIND, id, 0, 1000 + position, delivery=take(f"{id}/{position}")), 0)
    delivery = Delivery(
        done=40,
        attempts=((41, 2),),
        outbox=tuple(message(index).message for index in range(3)),
        delivered=(31 << 16, 30 << 16),
        timers=(timer("a", "z", 9).timer, timer("a", "x", 5).timer),
        timers_gone=("y",),
        dead=letter(54).letter,
        letter_gone=12,
    )
    dirty.lay(Record(0, 54, KIND, "a", delivery=delivery), 0)
    again = tuple(timer("c", f"t{number}", 7).timer for number in range(timers))
    dirty.lay(Record(0, 55, KIND, "c", 5, deleted=True, delivery=Delivery(timers=again, timers_gone=("old",))), 0)
    return dirty


def take(text: str) -> Delivery:
    return Delivery(accepted=accepted(text))


def writes_of(dirty: Dirty, rows_max: int, bytes_max: int = 10**9) -> list[TableWrite]:
    part = ShardCheckpoint(0, 4, 55, dirty, ())
    return [write for transaction in plan([part], rows_max, bytes_max) for write in transaction]


def test_pending_work_is_written_once_in_key_order_before_the_end() -> None:
    """PR08, J15: what is pending and what is over, in transactions of any size; p comes last."""
    for rows_max in (1, 2, 5, 100):
        writes = writes_of(with_pending_work(), rows_max)
        found = {field: [row for write in writes for row in getattr(write, field)] for field in PENDING}
        assert found == {
            "mailbox": [mail("a", 52), mail("a", 53), mail("b", 51)],
            "mailbox_done": [(KIND, "a", 40)],
            "mailbox_attempts": [(KIND, "a", 41, 2)],
            "outbox": [OutboxRow(outbox_number(54, index), message(index).message) for index in range(3)],
            "outbox_done": [30 << 16, 31 << 16],
            "timers": [timer("a", "x", 5), timer("a", "z", 9), timer("c", "t0", 7), timer("c", "t1", 7)],
            "timers_gone": [(KIND, "a", "y")],
            "timers_cleared": [(KIND, "c")],
            "dead_letters": [letter(54, "a")],
            "letters_gone": [12],
        }
        assert [write.end for write in writes] == [None] * (len(writes) - 1) + [CheckpointEnd(55)]


def test_pending_work_is_cut_by_rows_and_bytes() -> None:
    """A lock on the tables is short, also when a thousand tells came with large arguments."""
    dirty = Dirty()
    for position in range(1, 41):
        dirty.lay(Record(0, position, KIND, "a", delivery=take("x" * 1000)), 0)
    assert [len(write.mailbox) for write in writes_of(dirty, 15)] == [15, 15, 10]
    assert {len(write.mailbox) for write in writes_of(dirty, 1000, 3500)} == {3, 1}


@pytest.mark.parametrize("rows_max", [1, 3, 100])
def test_a_deleted_entitys_timers_are_cleared_and_set_at_once(rows_max: int) -> None:
    """J04, M20: a checkpoint whose end was written may begin again and stop half way: were they set in a later
    transaction, p would then say that timers are there which are not."""
    (write,) = [write for write in writes_of(with_pending_work(timers=10), rows_max) if write.timers_cleared]
    assert write.timers_cleared == ((KIND, "c"),)
    assert [row.timer.name for row in write.timers if row.id == "c"] == [f"t{number}" for number in range(10)]


def test_what_began_and_ended_in_between_is_not_written() -> None:
    """J15: a tell that was accepted and has run since the last checkpoint costs the tables nothing, nor does a message
    that arrived."""
    dirty = Dirty()
    for position in range(1, 100, 3):
        dirty.lay(Record(0, position, KIND, "a", delivery=take("x")), 0)
        dirty.lay(Record(0, position + 1, KIND, "a", delivery=Delivery(outbox=(message(0).message,))), 0)
        over = Delivery(done=position, delivered=(outbox_number(position + 1, 0),))
        dirty.lay(Record(0, position + 2, KIND, "a", delivery=over), 0)
    assert writes_of(dirty, 500) == [TableWrite(0, 4, end=CheckpointEnd(55))]
