"""What Atoll writes and sends is plain MessagePack: the independent `msgpack` package reads it without our code."""

from __future__ import annotations

import msgpack

from atoll.actors.calls import Status
from atoll.actors.stored import StoredEvent, StoredState
from atoll.cluster.wire import encode_frame
from atoll.persistence.checksum import HEADER_BYTES
from atoll.persistence.records import Record, RecordedReply, encode_batch
from atoll.sharding.messages import Answer, Call


def test_a_log_row_is_a_header_and_an_array_of_records() -> None:
    """PR05: nine bytes of header, then one array per record, its fields in the order that records.py gives."""
    event = StoredEvent("Deposited", 1, msgpack.packb({"amount": 5}))
    state = StoredState(2, msgpack.packb({"balance": 5}))
    reply = RecordedReply(Status.OK, msgpack.packb(5), 0)
    record = Record(
        7, 1, "Account", "ä", 1, 1_700_000_000_000, state, (event,), client=3, number=4, floor=4, reply=reply
    )
    (read,) = msgpack.unpackb(encode_batch([record], 9, 1)[HEADER_BYTES:])
    assert read[:6] == [7, 1, "Account", "ä", 1, 1_700_000_000_000]
    assert (read[6][0], msgpack.unpackb(read[6][1])) == (2, {"balance": 5})
    assert [(name, version, msgpack.unpackb(data)) for name, version, data in read[7]] == [
        ("Deposited", 1, {"amount": 5})
    ]
    assert read[8:12] == [False, 3, 4, 4]
    assert (read[12][0], msgpack.unpackb(read[12][1])) == (0, 5)


def test_a_frame_is_a_length_and_an_array_of_tagged_messages() -> None:
    """R03: four bytes of length, then arrays that begin with the message's tag."""
    call = Call(1, 2, 3, 0, 1, 0, "Account", "ä", "deposit", msgpack.packb({"amount": 5}), 10_000)
    frame = encode_frame([call, Answer(1, 2, 0, b"\x05")], 1 << 20)
    assert int.from_bytes(frame[:4]) == len(frame) - 4
    first, second = msgpack.unpackb(frame[4:])
    assert first[:10] == [1, 1, 2, 3, 0, 1, 0, "Account", "ä", "deposit"]
    assert msgpack.unpackb(first[10]) == {"amount": 5}
    assert first[11:] == [10_000, "", [], 0, 0, 0]
    assert second == [2, 1, 2, 0, b"\x05", 0, 0]
