"""Records in the log: what they say of work that outlives its host, and how those of other versions are read."""

from __future__ import annotations

import msgspec
from store_rows import KIND, accepted, letter, message, timer

from atoll.actors.stored import StoredState
from atoll.persistence.checksum import wrap
from atoll.persistence.records import (
    MESSAGES_PER_RECORD_MAX,
    STREAMS,
    Delivery,
    Record,
    decode_batch,
    encode_batch,
    is_stream,
    log_place,
    outbox_number,
    stream_of,
)

FULL = Delivery(
    accepted=accepted("order-17"),
    done=3,
    attempts=((4, 1), (5, 2)),
    outbox=(message(1).message, message(2).message),
    delivered=(outbox_number(2, 1), outbox_number(1 << 46, MESSAGES_PER_RECORD_MAX)),
    timers=(timer("a", "x", 5).timer,),
    timers_gone=("y",),
    dead=letter(9).letter,
    letter_gone=7,
)


def test_what_a_record_delivers_survives_the_log() -> None:
    """PR05, J15: every field, beside an effect and alone."""
    for record in (
        Record(1, 9, KIND, "a", 3, 1000, StoredState(1, b"s"), client=stream_of(255), number=1 << 62, delivery=FULL),
        Record(1, 10, KIND, "a", delivery=Delivery(done=4)),
        Record(1, 11, KIND, "a", 4, deleted=True),
    ):
        assert decode_batch(encode_batch([record], 3, 1), 3, 1) == [record]


def test_records_of_schema_1_deliver_nothing() -> None:
    """J13: a log that was written before there was delivery."""
    fields = msgspec.to_builtins(Record(1, 9, KIND, "a", 3, 1000, StoredState(1, b"s")), builtin_types=(bytes,))
    before = fields[: Record.__struct_fields__.index("delivery")]
    content = wrap(msgspec.msgpack.encode([before]), log_place(3, 1))
    assert decode_batch(content, 3, 1) == [Record(1, 9, KIND, "a", 3, 1000, StoredState(1, b"s"))]


def test_messages_are_numbered_in_the_order_in_which_they_were_staged() -> None:
    """J15: by position, then by their place in the record, for ever; and the numbers fit the store's integers."""
    places = [(1, 0), (1, 1), (1, MESSAGES_PER_RECORD_MAX), (2, 0), (1 << 46, MESSAGES_PER_RECORD_MAX)]
    numbers = [outbox_number(*place) for place in places]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 1 << 63


def test_streams_are_no_sessions() -> None:
    """J15: what one shard sends to another is a client of its own, apart from every session."""
    assert not is_stream(1)
    assert not is_stream(STREAMS - 1)
    assert all(is_stream(stream_of(shard)) for shard in (0, 255, 1 << 20))
    assert len({stream_of(shard) for shard in range(256)}) == 256
    assert stream_of(1 << 20) < 1 << 63
