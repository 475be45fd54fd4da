"""Frames: what goes in comes out, however the network cuts it; what is wrong is a `ProtocolError` and nothing else."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wiring import call

from atoll.cluster.wire import (
    FRAME_MESSAGES_MAX,
    FROM_CLIENT,
    FROM_COORDINATOR,
    FROM_HOST,
    HANDSHAKE,
    HANDSHAKE_FRAME_BYTES_MAX,
    Challenge,
    FrameReader,
    Hello,
    Proof,
    ProtocolError,
    Refused,
    Welcome,
    encode_frame,
)
from atoll.sharding.messages import (
    Answer,
    Call,
    Credit,
    Goodbye,
    Moved,
    OutOfOrder,
    Ping,
    Poke,
    Pong,
    StripeHosts,
    TableUpdate,
)

LIMIT = 1 << 20

NATURALS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CALLS = st.builds(
    Call,
    *[NATURALS] * 6,
    TEXTS,
    TEXTS,
    TEXTS,
    st.binary(max_size=100),
    NATURALS,
    TEXTS,
    st.lists(TEXTS, max_size=3).map(tuple),
)


def read(data: bytes, decoder: Any = FROM_CLIENT, limit: int = LIMIT) -> list[list[Any]]:
    return list(FrameReader(limit, decoder).feed(data))


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


@given(st.lists(CALLS, min_size=1, max_size=5))
def test_calls_come_back_as_they_went(calls: list[Call]) -> None:
    """What is encoded is decoded unchanged, at the edges of every range too."""
    assert read(encode_frame(calls, LIMIT)) == [calls]


@pytest.mark.parametrize(
    ("messages", "decoder"),
    [
        ([call(1), Ping(), Pong(), Goodbye("why")], FROM_CLIENT),
        ([Poke(), StripeHosts((("a:1", "b:2"), ())), Ping(), Pong(), Goodbye("why")], FROM_COORDINATOR),
        (
            [
                Answer(1, 2, 3, b"x"),
                Moved(1, 2, 3, 4, "a:1"),
                OutOfOrder(1, 2),
                TableUpdate(((1, 2, 3, "a:1"),)),
                StripeHosts(((), ("a:1",))),
                Credit(1, 2),
                Ping(),
                Pong(),
                Goodbye("why"),
            ],
            FROM_HOST,
        ),
        (
            [
                Hello(1, "bank", "client", bytes(32), 0, 0, 1),
                Challenge(1, bytes(32), bytes(32), 7),
                Proof(bytes(32)),
                Welcome(*range(1, 10)),
                Refused(1, "why"),
            ],
            HANDSHAKE,
        ),
    ],
)
def test_every_message_of_a_direction_is_read(messages: list[Any], decoder: Any) -> None:
    """Each end reads all that its peer may say."""
    assert read(encode_frame(messages, LIMIT), decoder) == [messages]


def test_cuts_of_the_network_change_nothing() -> None:
    """A stream cut anywhere, into pieces of any size, gives the same frames."""
    seed = random.randrange(2**32)
    luck = random.Random(seed)
    frames = [[call(n, luck.randbytes(luck.choice((0, 3, 500)))) for n in range(luck.randint(1, 4))] for _ in range(30)]
    stream = b"".join(encode_frame(one, LIMIT) for one in frames)
    for size_max in (1, 2, 7, 100, len(stream)):
        reader, start, heard = FrameReader(LIMIT, FROM_CLIENT), 0, []
        while start < len(stream):
            size = luck.randint(1, size_max)
            heard += list(reader.feed(stream[start : start + size]))
            start += size
        assert heard == frames, f"seed {seed}, pieces of at most {size_max}"
        assert reader.kept_bytes == 0


def test_a_long_frame_in_small_pieces_is_read_in_linear_time() -> None:
    """16 MiB in pieces of 4 KiB: each is appended once. Copying what is kept at every piece would move 32 GiB."""
    sent = [call(1, bytes(16 << 20))]
    stream = encode_frame(sent, 17 << 20)
    reader = FrameReader(17 << 20, FROM_CLIENT)
    heard = [one for at in range(0, len(stream), 4096) for one in reader.feed(stream[at : at + 4096])]
    assert heard == [sent]


def test_a_frame_over_the_limit_is_refused_on_its_prefix() -> None:
    """R03: oversized. Four bytes are enough, and nothing of the body is kept."""
    reader = FrameReader(HANDSHAKE_FRAME_BYTES_MAX)
    with pytest.raises(ProtocolError, match="a frame of 4097 bytes, at most 4096"):
        list(reader.feed((4097).to_bytes(4)))
    assert reader.kept_bytes == 0


def test_a_truncated_frame_is_waited_for_within_its_limit() -> None:
    """R03: truncated. What is kept is less than one frame."""
    reader = FrameReader(LIMIT, FROM_CLIENT)
    assert list(reader.feed(encode_frame([call(1)], LIMIT)[:-1])) == []
    assert 0 < reader.kept_bytes < 100


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "truncated"),
        (b"\x90", "without messages"),
        (b"\x91" * 100_000, "Expected `int`, got `array`"),
        (b"\x91\x92\x08" + b"\x91" * 100_000, "nested too deep"),
        (b"\x91\x92\x08" + b"\x81" * 100_000, "nested too deep"),
        (b"\xdd\xff\xff\xff\xff", "more than 65535 messages"),
        (b"\xdc\xff\xff\x91\x08", "truncated"),
        (b"\x91\x91\x63", "Invalid value 99"),
        (b"\x91\x91\xa1x", "got `str`"),
        (b"\x91\x91\x02", "Invalid value 2"),
        (b"\x91\x91\x01", "of at least length 12"),
        (b"\x91\x91\x08\x00", "trailing"),
        (b"\x91\x92\x07\xa2\xff\xff", "utf-8"),
        (b"\x91\x92\x07\xdb\xff\xff\xff\xff", "truncated"),
        (b"\xc1", "cannot be read"),
        (b"\x81\x01\x02", "Expected `array`"),
    ],
)
def test_a_body_that_is_no_list_of_messages_is_refused(body: bytes, problem: str) -> None:
    """R03: empty, nested, endless, of another direction, trailing, not UTF-8: each is a `ProtocolError` that says it."""
    with pytest.raises(ProtocolError, match=problem):
        read(frame(body))


@pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    """R03: no handler and no store meets a number that it cannot hold."""
    good = msgspec.msgpack.decode(msgspec.msgpack.encode(call(1)))
    for at in (1, 2, 3, 4, 5, 6, 11):
        bad = [*good[:at], number, *good[at + 1 :]]
        with pytest.raises(ProtocolError, match="Expected `int`"):
            read(frame(msgspec.msgpack.encode([bad])))


@pytest.mark.parametrize(
    "addresses",
    [(("",),), (("a" * 301,),), (("a:1",) * 10_001,), ((),) * 1025],
    ids=["an empty address", "a long one", "too many hosts", "too many databases"],
)
def test_hosts_that_nobody_could_have_are_refused(addresses: Any) -> None:
    """R03: what a process is told to remember is bounded, whoever says it; clients say nothing of the kind."""
    for decoder in (FROM_COORDINATOR, FROM_HOST):
        with pytest.raises(ProtocolError, match="length"):
            read(encode_frame([StripeHosts(addresses)], LIMIT), decoder)
    with pytest.raises(ProtocolError):
        read(encode_frame([StripeHosts((("a:1",),))], LIMIT), FROM_CLIENT)


def test_what_stands_before_the_damage_is_read() -> None:
    """The frames before a broken one come out, wherever the network cut the stream."""
    reader = FrameReader(LIMIT, FROM_CLIENT)
    frames = reader.feed(encode_frame([call(1)], LIMIT) + frame(b"\xc1"))
    assert next(frames) == [call(1)]
    with pytest.raises(ProtocolError):
        next(frames)


def test_trust_begins_between_two_frames_of_one_piece() -> None:
    """A host's first messages stand right behind its Welcome: the next frame is read under the new terms."""
    welcome = Welcome(*range(1, 10))
    long = [Answer(1, 1, 0, bytes(2 * HANDSHAKE_FRAME_BYTES_MAX))]
    reader = FrameReader()
    heard = []
    for messages in reader.feed(encode_frame([welcome], LIMIT) + encode_frame(long, LIMIT)):
        heard.append(messages)
        reader.trust(FROM_HOST, LIMIT)
    assert heard == [[welcome], long]


def test_messages_over_one_frame_are_split_in_order() -> None:
    """Each frame keeps the limit, and the messages their order."""
    calls = [call(n, bytes(1000)) for n in range(50)]
    stream = encode_frame(calls, 4096)
    frames = read(stream, limit=4096)
    assert len(frames) > 10
    assert [one for messages in frames for one in messages] == calls


def test_more_messages_than_a_frame_counts_are_split() -> None:
    """The reader takes 65,535 messages a frame, so the writer sends no more."""
    pings = [Ping()] * (FRAME_MESSAGES_MAX + 1)
    assert [len(messages) for messages in read(encode_frame(pings, LIMIT))] == [32768, 32768]


@pytest.mark.parametrize("bad", [call(1, bytes(5000)), call(2**70), Goodbye("\ud800")])
def test_a_message_that_cannot_be_sent_is_the_callers_error(bad: Any) -> None:
    """Too long, more than 64 bits, a lone surrogate: `ValueError`, here and not at the peer."""
    with pytest.raises(ValueError, match=r"frame_bytes_max|cannot be encoded|surrogates"):
        encode_frame([bad], 4096)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_a_protocol_error(data: bytes) -> None:
    """R03: random bytes, behind a valid length and without one, for every direction."""
    for decoder in (HANDSHAKE, FROM_CLIENT, FROM_COORDINATOR, FROM_HOST):
        for stream in (data, frame(data), frame(b"\x91\x9d\x01" + data)):
            try:
                read(stream, decoder)
            except ProtocolError as error:
                assert str(error)  # noqa: PT017 - that it raises nothing else is what is tested


def test_a_valid_frame_with_flipped_bytes_raises_nothing_but_a_protocol_error() -> None:
    """R03: mutated frames are refused, or read as messages of the right types; nothing else is raised."""
    seed = random.randrange(2**32)
    luck = random.Random(seed)
    good = encode_frame([call(n, b"abc") for n in range(3)], LIMIT)
    refused = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(luck.randint(1, 4)):
            bad[luck.randrange(4, len(bad))] = luck.randrange(256)
        try:
            kinds = {type(one) for messages in read(bytes(bad)) for one in messages}
            assert kinds <= {Call, Poke, Ping, Pong, Goodbye}, f"seed {seed}: {kinds}"
        except ProtocolError:
            refused += 1
    assert refused > 1000, f"seed {seed}: the damage did not bite"
