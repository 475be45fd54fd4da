"""Peers that break the rules, over real sockets: the process lives, the others do not notice, and a reason is given."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from wiring import (
    CLIENT_TERMS,
    OTHER_TOKEN,
    TOKEN,
    EchoReceiver,
    Listener,
    call,
    hello_frame,
    join,
    make_server,
    raw_peer,
    trusted_raw_peer,
)

from atoll.actors.settings import Settings
from atoll.cluster.handshake import WRONG_TOKEN, ClientHandshake, Refusal, client_mac
from atoll.cluster.network import TcpNetwork
from atoll.cluster.server import Server
from atoll.cluster.system import SystemWorld
from atoll.cluster.token import Token
from atoll.cluster.wire import FROM_HOST, Challenge, FrameReader, Proof, Refused, encode_frame
from atoll.sharding.messages import Answer, Goodbye, Ping

NETWORK = TcpNetwork()


class Bystander:
    """An honest client that works all the time, and must not notice anything."""

    def __init__(self) -> None:
        self.listener = Listener()
        self.asked = 0

    async def start(self, address: str) -> None:
        self.link = await join(NETWORK, address, SystemWorld(), self.listener)
        await self.listener.until_welcome()

    async def works(self) -> None:
        self.asked += 1
        self.link.send(call(self.asked))
        await self.listener.until(lambda: len(self.listener.messages) == self.asked)
        assert self.listener.messages[-1] == Answer(self.asked % 256, self.asked, 0, b"x")
        assert self.listener.reasons == []


class Scene:
    def __init__(self) -> None:
        self.receiver = EchoReceiver()
        self.server: Server = make_server(self.receiver, NETWORK, SystemWorld(), Settings())
        self.bystander = Bystander()
        self.address = ""


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    """A server on the loopback with one honest client, which is asked again after the test."""
    scene = Scene()
    scene.address = await scene.server.listen("127.0.0.1", 0)
    scene.server.serve(7)
    await scene.bystander.start(scene.address)
    yield scene
    await scene.bystander.works()
    assert [event for event in scene.receiver.events if event[0] == "disconnected"] == []
    scene.server.close("the test is over")
    await scene.bystander.listener.until_closed()


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


@pytest.mark.parametrize(
    ("garbage", "problem"),
    [
        (b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", "a frame of 1195725856 bytes"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a frame of 369295618 bytes"),
        (b"\xff" * 100_000, "a frame of 4294967295 bytes"),
        (frame(b"\x91" * 4000), "Expected `int`, got `array`"),
        (frame(b"\x91\xdc\x00\x09\x10" + b"\x91" * 4000), "cannot be read"),
        (frame(b"\xc1"), "cannot be read"),
        (frame(b""), "cannot be read"),
        (frame(b"\xdd\xff\xff\xff\xff"), "messages"),
        (encode_frame([call(1)], 4096), "cannot be read: Invalid value 1"),
        (encode_frame([Ping()], 4096), "cannot be read: Invalid value 8"),
        (encode_frame([Proof(bytes(32))], 4096), "Proof while awaiting Hello"),
        (hello_frame() + hello_frame(), "Hello while awaiting Proof"),
    ],
)
async def test_garbage_before_the_handshake_is_refused_with_the_reason(
    scene: Scene, garbage: bytes, problem: str
) -> None:
    """R03: another protocol, random, nested, out of turn: one refusal that says what was wrong, then the end."""
    peer = await raw_peer(NETWORK, scene.address, garbage)
    await peer.until_closed()
    refused = peer.messages()[-1]
    assert isinstance(refused, Refused)
    assert refused.code == Refusal.PROTOCOL
    assert problem in refused.reason
    await scene.bystander.works()


@pytest.mark.parametrize(
    ("garbage", "problem"),
    [
        (b"\xff" * 100_000, "a frame of 4294967295 bytes, at most 16777216"),
        (frame(b"\x91" * 100_000), "got `array`"),
        (frame(b"\x91\x92\x08" + b"\x91" * 100_000), "nested too deep"),
        (frame(b"\x91\x91\x63"), "Invalid value 99"),
        (encode_frame([Answer(1, 1, 0, b"")], 4096), "Invalid value 2"),
        (hello_frame(), "Invalid value 16"),
        (frame(msgspec.msgpack.encode([msgspec.structs.replace(call(1), number=-1)])), "Expected `int` >= 0"),
    ],
)
async def test_garbage_of_a_trusted_peer_ends_its_connection_with_the_reason(
    scene: Scene, garbage: bytes, problem: str
) -> None:
    """R03: a Goodbye that says what was wrong; what came before it was answered, what comes after it is not read."""
    peer = await trusted_raw_peer(NETWORK, scene.address)
    peer.transport.write(encode_frame([call(1)], 4096) + garbage + encode_frame([call(2)], 4096))
    await peer.until_closed()
    heard = [one for messages in FrameReader(1 << 20, FROM_HOST).feed(bytes(peer.heard)) for one in messages]
    assert [type(one) for one in heard] == [Answer, Goodbye]
    assert problem in heard[1].reason
    assert [one.number for messages in scene.receiver.frames for one in messages] == [1]
    scene.receiver.events.remove(("disconnected", 41, 0))
    await scene.bystander.works()


async def test_a_truncated_frame_holds_nobody_up(scene: Scene) -> None:
    """R03: half a frame and then silence, or the end: only that peer waits."""
    half = encode_frame([call(1, bytes(1000))], 4096)[:500]
    silent = await trusted_raw_peer(NETWORK, scene.address)
    silent.transport.write(half)
    ending = await trusted_raw_peer(NETWORK, scene.address)
    ending.transport.write(half)
    ending.transport.write_eof()
    await ending.until_closed()
    await scene.bystander.works()
    silent.transport.abort()
    await silent.until_closed()
    await scene.bystander.listener.until(lambda: True)
    while len(scene.receiver.peers) > 1:  # noqa: ASYNC110 - the receiver has nothing to wait on
        await asyncio.sleep(0)
    scene.receiver.events = [event for event in scene.receiver.events if event[0] != "disconnected"]


async def test_random_streams_hurt_nobody(scene: Scene) -> None:
    """R03: a hundred peers that send random bytes, damaged handshakes and damaged calls, at once, while an honest one
    works: each is closed, none stops the host."""
    seed = random.randrange(2**32)
    luck = random.Random(seed)

    def damaged(good: bytes) -> bytes:
        bad = bytearray(good)
        for _ in range(luck.randint(1, 5)):
            bad[luck.randrange(len(bad))] = luck.randrange(256)
        return bytes(bad)

    async def attack(kind: int) -> None:
        try:
            if kind == 0:
                peer = await raw_peer(NETWORK, scene.address, luck.randbytes(luck.randint(1, 5000)))
            elif kind == 1:
                peer = await raw_peer(NETWORK, scene.address, damaged(hello_frame()))
            else:
                peer = await trusted_raw_peer(NETWORK, scene.address, luck.randbytes(32))
                for _ in range(20):
                    peer.transport.write(damaged(encode_frame([call(n) for n in range(3)], 4096)))
            peer.transport.write_eof()
            await peer.until_closed()
        except (ConnectionError, AssertionError) as error:
            assert "closed while waiting" in str(error) or isinstance(error, ConnectionError), f"seed {seed}"  # noqa: PT017

    attacks = asyncio.gather(*(attack(n % 3) for n in range(100)))
    while not attacks.done():
        await scene.bystander.works()
    await attacks
    await scene.bystander.works()
    while scene.server.connections > 1:  # noqa: ASYNC110 - the server has nothing to wait on
        await asyncio.sleep(0)
    scene.receiver.events = [event for event in scene.receiver.events if event[0] != "disconnected"]


async def test_another_version_is_told_which_one_is_spoken(scene: Scene) -> None:
    """R03: wrong version."""
    hello = msgspec.structs.replace(ClientHandshake(CLIENT_TERMS, TOKEN, bytes(32)).hello, version=9)
    peer = await raw_peer(NETWORK, scene.address, encode_frame([hello], 4096))
    await peer.until_closed()
    (refused,) = peer.messages()
    assert refused.code == Refusal.VERSION
    assert "protocol 9 is not spoken here, only 2" in refused.reason


# ---- the token


async def test_without_the_token_nothing_but_the_handshake_is_answered(scene: Scene) -> None:
    """R04: calls before Hello, after Hello and behind a wrong proof reach nobody and get no answer."""
    heard: list[Any] = []
    for stream in (
        encode_frame([call(1)], 4096),
        hello_frame() + encode_frame([call(1)], 4096),
        hello_frame() + encode_frame([Proof(bytes(32))], 4096) + encode_frame([call(1)], 4096),
        hello_frame() + encode_frame([Proof(bytes(32)), Proof(bytes(32))], 4096),
    ):
        peer = await raw_peer(NETWORK, scene.address, stream)
        await peer.until_closed()
        heard += peer.messages()
    assert {type(one) for one in heard} == {Challenge, Refused}
    assert scene.receiver.frames == []
    assert scene.receiver.events == [("connected", 41, 0)]


async def test_a_wrong_token_is_refused_at_both_ends(scene: Scene) -> None:
    """R04: the honest client notices first; one that goes on with a wrong proof is told the same and no more."""
    listener = Listener()
    link = await join(NETWORK, scene.address, SystemWorld(), listener, token=OTHER_TOKEN)
    assert await listener.until_closed() == WRONG_TOKEN
    assert link.refusal is Refusal.TOKEN

    hello = ClientHandshake(CLIENT_TERMS, OTHER_TOKEN, bytes(32)).hello
    peer = await raw_peer(NETWORK, scene.address, encode_frame([hello], 4096))
    await peer.until(lambda: bool(peer.messages()))
    challenge = peer.messages()[0]
    wrong = client_mac(OTHER_TOKEN, hello, challenge.nonce, challenge.incarnation)
    peer.transport.write(encode_frame([Proof(wrong)], 4096))
    await peer.until_closed()
    assert peer.messages()[1:] == [Refused(Refusal.TOKEN, WRONG_TOKEN)]


async def test_a_recorded_handshake_opens_nothing(scene: Scene) -> None:
    """R04: an exchange that was overheard, replayed byte by byte, and a host's proof reflected to it."""
    handshake = ClientHandshake(CLIENT_TERMS, TOKEN, bytes(32))
    first = await raw_peer(NETWORK, scene.address, encode_frame([handshake.hello], 4096))
    await first.until(lambda: bool(first.messages()))
    challenge = first.messages()[0]
    recorded = encode_frame([Proof(client_mac(TOKEN, handshake.hello, challenge.nonce, 7))], 4096)
    for replay in (recorded, encode_frame([Proof(challenge.mac)], 4096)):
        peer = await raw_peer(NETWORK, scene.address, encode_frame([handshake.hello], 4096))
        await peer.until(lambda peer=peer: bool(peer.messages()))  # type: ignore[misc] # binds this round's peer
        assert peer.messages()[0].nonce != challenge.nonce
        peer.transport.write(replay)
        await peer.until_closed()
        assert peer.messages()[-1] == Refused(Refusal.TOKEN, WRONG_TOKEN)
    first.transport.abort()


async def test_the_token_is_in_no_log_and_no_text(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """R04: with every log on, over accepted, refused and broken connections, neither the token nor its bytes show."""
    caplog.set_level(logging.DEBUG)
    secret = bytes(range(32))
    assert Token(secret) == TOKEN
    listener = Listener()
    await join(NETWORK, scene.address, SystemWorld(), listener, token=OTHER_TOKEN)
    reasons = [await listener.until_closed()]
    for garbage in (b"\xff" * 100, hello_frame() + encode_frame([Proof(bytes(32))], 4096)):
        peer = await raw_peer(NETWORK, scene.address, garbage)
        await peer.until_closed()
        reasons += [one.reason for one in peer.messages() if isinstance(one, Refused)]
    with pytest.raises(TypeError) as refused:
        TOKEN.__reduce__()
    shown = "\n".join([caplog.text, *reasons, str(refused.value), repr(scene.server.__dict__), repr(TOKEN)])
    assert "refused (TOKEN)" in shown
    for form in (TOKEN.reveal(), secret.hex(), repr(secret), str(list(secret))):
        assert form not in shown
