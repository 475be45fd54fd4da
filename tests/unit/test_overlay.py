"""What is committed and not in the tables: layers over a row equal the replay of all records."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from store_rows import KIND, accepted, letter, mail, message, own, timer

from atoll.actors.stored import StoredEntity, StoredEvent, StoredState
from atoll.persistence.checkpoint import ShardCheckpoint, plan
from atoll.persistence.memory import MemoryStore
from atoll.persistence.overlay import RECORD_BYTES, Dirty, Overlay, record_bytes
from atoll.persistence.records import DeadLetterRow, Delivery, Record, RecordedReply, outbox_number
from atoll.persistence.spi import TableWrite

KEY = ("Box", "a")


def event(seq: int) -> StoredEvent:
    return StoredEvent("Put", 1, f"e{seq}".encode())


def record(position: int, id: str, seq: int, what: str) -> Record:
    """One commit: the whole state, an event, an event with a snapshot, or a deletion."""
    made = Record(0, position, "Box", id, seq, time_ms=position)
    if what == "state":
        made.state = StoredState(1, f"s{seq}".encode())
    elif what == "deleted":
        made.deleted = True
    elif what != "nothing":
        made.events = (event(seq),)
        if what == "snapshot":
            made.state = StoredState(1, f"s{seq}".encode())
    else:
        made.seq = 0
    return made


def replayed(records: list[Record], key: tuple[str, str]) -> StoredEntity:
    """From the beginning, one record at a time: the definition."""
    entity = StoredEntity()
    for one in records:
        if (one.kind, one.id) != key or not one.seq:
            continue
        if one.deleted:
            entity = StoredEntity(one.seq)
        elif one.state is not None:
            entity = StoredEntity(one.seq, one.state)
        else:
            entity = StoredEntity(one.seq, entity.state, (*entity.events, *one.events))
    return entity


def laid(overlay: Overlay, base: StoredEntity, key: tuple[str, str] = KEY) -> StoredEntity:
    for delta in overlay.deltas(key):
        base = delta.over(base)
    return base


async def from_tables(store: MemoryStore, key: tuple[str, str]) -> StoredEntity:
    row = await store.read_entity(0, *key)
    if row is None:
        return StoredEntity()
    commits = await store.read_commits(0, *key, after_seq=row.state_seq)
    events = tuple(event for commit in commits for event in commit.events)
    return StoredEntity(commits[-1].seq if commits else row.state_seq, row.state, events)


changes = st.lists(st.sampled_from(["state", "event", "snapshot", "deleted", "nothing"]), max_size=12)


@given(changes, st.integers(0, 12), st.integers(0, 12))
def test_layers_over_nothing_are_the_replay(script: list[str], first_freeze: int, second_freeze: int) -> None:
    """J05, PR10: frozen, then dirty, wherever the cut is."""
    overlay = Overlay()
    records = []
    seq = 0
    for position, what in enumerate(script, 1):
        seq += what != "nothing"
        records.append(record(position, "a", seq, what))
        overlay.lay(records[-1])
        if position in (first_freeze, second_freeze):
            overlay.freeze(position)
    assert laid(overlay, StoredEntity()) == replayed(records, KEY)


def test_a_checkpoint_that_begins_again_writes_the_same() -> None:
    """PR08, J04: what was frozen stays, with its position; what came since is not in it."""
    overlay = Overlay()
    overlay.lay(record(1, "a", 1, "state"))
    frozen = overlay.freeze(1)
    overlay.lay(record(2, "b", 1, "state"))
    assert overlay.freeze(2) is frozen
    assert overlay.frozen_position == 1
    assert set(frozen.entities) == {("Box", "a")}
    overlay.written()
    assert set(overlay.freeze(2).entities) == {("Box", "b")}
    assert overlay.frozen_position == 2


def test_what_the_tables_show_already_is_not_laid_twice() -> None:
    """PR10: between the last transaction of a checkpoint and the word that it is written."""
    overlay = Overlay()
    for seq in (1, 2, 3):
        overlay.lay(record(seq, "a", seq, "event"))
    whole = StoredEntity(3, None, (event(1), event(2), event(3)))
    assert laid(overlay, whole) == whole
    overlay.freeze(3)
    overlay.lay(record(4, "a", 4, "event"))
    assert laid(overlay, whole) == StoredEntity(4, None, (*whole.events, event(4)))


def test_clients_and_named_replies_are_collected() -> None:
    overlay = Overlay()
    reply = RecordedReply(0, b"r", 5)
    overlay.lay(Record(0, 1, "Box", "a", 1, 9, client=7, number=1, reply=reply, command_id="order"))
    overlay.lay(Record(0, 2, "Box", "a", 0, 9, client=8, number=1, reply=reply))
    dirty = overlay.freeze(2)
    assert dirty.clients == {7, 8}
    assert [(named.command_id, named.reply) for named in dirty.named.values()] == [("order", reply)]
    assert dirty.records == 2
    assert overlay.dirty.records == 0


@pytest.mark.parametrize("seed", range(20))
async def test_tables_and_overlay_together_are_the_replay_at_every_instant(seed: int) -> None:
    """J05, PR06, PR08: random commits of plain and event-sourced entities, with checkpoints that are written one transaction
    at a time, or cut off and begun again, between them."""
    luck = random.Random(seed)
    store = MemoryStore()
    await store.open("overlay", 1)
    host = await store.register_host("a:1", "n", None)
    epoch = (await own(store, host, 0))[0]
    overlay = Overlay()
    records: list[Record] = []
    seqs: dict[str, int] = {}
    writes: list[list[TableWrite]] = []
    sourced = {"a": True, "b": True, "c": False, "d": False}

    def begin() -> list[list[TableWrite]]:
        dirty = overlay.freeze(len(records))
        return list(plan([ShardCheckpoint(0, epoch, overlay.frozen_position, dirty, ())], 2, 10**9))

    for _ in range(150):
        what = luck.random()
        if what < 0.6:
            id = luck.choice(list(sourced))
            seqs[id] = seqs.get(id, 0) + 1
            change = luck.choice(
                ["event"] * 4 + ["snapshot", "deleted"] if sourced[id] else ["state"] * 4 + ["deleted"]
            )
            records.append(record(len(records) + 1, id, seqs[id], change))
            overlay.lay(records[-1])
        elif what < 0.7:
            writes = begin()  # also again, after a cut
        elif writes:
            assert not await store.checkpoint(host, writes.pop(0))
            if not writes:
                overlay.written()
        for id in sourced:
            key = ("Box", id)
            deltas = overlay.deltas(key)
            base = StoredEntity() if any(delta.replaces for delta in deltas) else await from_tables(store, key)
            assert laid(overlay, base, key) == replayed(records, key), (seed, id)
            assert laid(overlay, await from_tables(store, key), key) == replayed(records, key), (seed, id)


# ---- pending work


def delivering(position: int, delivery: Delivery | None, id: str = "a", *, deleted: bool = False) -> Record:
    seq = position if deleted else 0
    return Record(0, position, KIND, id, seq, 1000 + position, deleted=deleted, delivery=delivery)


def dirty_after(*records: Record, half_written: bool = False) -> Dirty:
    dirty = Dirty(half_written=half_written)
    for one in records:
        dirty.lay(one, 0)
    return dirty


TAKEN = delivering(5, Delivery(accepted=accepted("a/5")))
SENT = delivering(6, Delivery(outbox=(message(0).message, message(1).message)))
BURIED = delivering(7, Delivery(dead=letter(7).letter))


def test_what_is_pending_is_kept_as_it_is() -> None:
    """J15: entries under the position that accepted them, messages under position and index, letters under position."""
    dirty = dirty_after(TAKEN, SENT, BURIED)
    assert dirty.mailbox == {(KIND, "a"): {5: mail("a", 5)}}
    assert dirty.outbox == {outbox_number(6, 0): message(0).message, outbox_number(6, 1): message(1).message}
    assert dirty.letters == {7: DeadLetterRow(7, KIND, "a", letter(7).letter)}


def test_what_began_and_ended_in_one_set_leaves_no_trace() -> None:
    """J15: it never reaches the tables."""
    over = Delivery(done=5, delivered=(outbox_number(6, 0), outbox_number(6, 1)), letter_gone=7)
    dirty = dirty_after(TAKEN, SENT, BURIED, delivering(8, over))
    assert (dirty.mailbox, dirty.outbox, dirty.letters) == ({}, {}, {})


def test_what_began_before_leaves_the_word_that_it_ended() -> None:
    """J15: a row of it may stand in the tables, or is just being written there."""
    over = Delivery(done=5, delivered=(outbox_number(6, 0),), letter_gone=7)
    dirty = dirty_after(delivering(8, over))
    assert dirty.mailbox == {(KIND, "a"): {5: None}}
    assert dirty.outbox == {outbox_number(6, 0): None}
    assert dirty.letters == {7: None}


def test_after_a_takeover_every_end_is_kept() -> None:
    """PR08, J15: the former owner's checkpoint may have written the row before it stopped; the end came after."""
    over = Delivery(done=5, delivered=(outbox_number(6, 0), outbox_number(6, 1)), letter_gone=7)
    dirty = dirty_after(TAKEN, SENT, BURIED, delivering(8, over), half_written=True)
    assert dirty.mailbox == {(KIND, "a"): {5: None}}
    assert dirty.outbox == {outbox_number(6, 0): None, outbox_number(6, 1): None}
    assert dirty.letters == {7: None}
    overlay = Overlay(half_written=True)
    overlay.freeze(8)
    assert not overlay.dirty.half_written, "of what comes later nobody can have written anything"


def test_attempts_are_counted_where_the_entry_stands() -> None:
    """J15: in its row when it was accepted in this set, else beside it, until it is done."""
    tried = delivering(8, Delivery(attempts=((5, 1), (3, 4))))
    dirty = dirty_after(TAKEN, tried)
    assert dirty.mailbox == {(KIND, "a"): {5: mail("a", 5, attempts=1)}}
    assert dirty.attempts == {(KIND, "a", 3): 4}
    dirty.lay(delivering(9, Delivery(done=3)), 0)
    assert dirty.attempts == {}
    assert dirty.mailbox[KIND, "a"][3] is None


def test_a_record_takes_its_timers_after_what_it_cancels_and_deletes() -> None:
    """M20: deletion, then cancels, then what is scheduled; the last word under a name holds."""
    x, y, again = timer("a", "x", 5).timer, timer("a", "y", 6).timer, timer("a", "x", 7).timer
    dirty = dirty_after(delivering(5, Delivery(timers=(x, y))), delivering(6, Delivery(timers_gone=("x", "z"))))
    assert dirty.timers == {(KIND, "a"): {"x": None, "y": y, "z": None}}
    assert dirty.timers_cleared == set()
    dirty.lay(delivering(7, Delivery(timers=(again,), timers_gone=("x",)), deleted=True), 0)
    assert dirty.timers == {(KIND, "a"): {"x": again}}
    assert dirty.timers_cleared == {(KIND, "a")}
    dirty.lay(delivering(8, None, deleted=True), 0)
    assert dirty.timers == {}
    assert dirty.timers_cleared == {(KIND, "a")}


def test_other_entities_are_left_alone() -> None:
    """M20: a deletion takes the timers of that entity."""
    y = timer("b", "y", 6).timer
    dirty = dirty_after(delivering(5, Delivery(timers=(y,)), "b"), delivering(6, None, deleted=True))
    assert dirty.timers == {(KIND, "b"): {"y": y}}


def test_a_record_weighs_what_it_carries() -> None:
    """The bounds on what is not in the tables count the payloads of pending work too."""
    arguments = b"x" * 10_000
    sent = replace(message(0).message, arguments=arguments)
    ticking = replace(timer("a", "x", 5).timer, arguments=arguments)
    dead = replace(letter(1).letter, arguments=arguments, error="y" * 10_000)
    taken = replace(accepted("a"), arguments=arguments)
    plain = record_bytes(delivering(1, None))
    assert plain == RECORD_BYTES
    for delivery, payloads in (
        (Delivery(accepted=taken), 1),
        (Delivery(outbox=(sent, sent)), 2),
        (Delivery(timers=(ticking, ticking, ticking)), 3),
        (Delivery(dead=dead), 2),
        (Delivery(delivered=tuple(range(1250))), 1),
    ):
        assert 0 <= record_bytes(delivering(1, delivery)) - plain - payloads * 10_000 < 500
