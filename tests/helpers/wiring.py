"""Both ends of a connection for tests: a receiver and a listener that write down what they hear, and a peer made of raw
bytes that keeps to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from atoll.actors.settings import Settings
from atoll.actors.world import World
from atoll.cluster.handshake import ClientHandshake, ClientTerms, HostTerms
from atoll.cluster.link import Access, Link
from atoll.cluster.network import Network
from atoll.cluster.server import Server
from atoll.cluster.token import Token
from atoll.cluster.wire import HANDSHAKE_FRAME_BYTES_MAX, FrameReader, Welcome, encode_frame
from atoll.sharding.messages import Answer, Call, Message, Peer

APP = "bank"
TOKEN = Token(bytes(range(32)))
OTHER_TOKEN = Token(bytes(32))

HOST_TERMS = HostTerms(
    app=APP,
    incarnation=7,
    shards=256,
    window_commands=4096,
    window_bytes=1 << 20,
    shard_window=1024,
    mailbox_commands_max=1000,
    arguments_bytes_max=1 << 20,
    frame_bytes_max=1 << 24,
)
CLIENT_TERMS = ClientTerms(app=APP, frame_bytes_max=1 << 24)


def call(number: int, arguments: bytes = b"x") -> Call:
    return Call(number % 256, number, 1, 0, 1, 0, "Account", "alice", "deposit", arguments, 10_000)


class EchoReceiver:
    """Implements `Receiver`: writes down what happens, and answers each call with its own arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.frames: list[list[Any]] = []
        self.peers: list[Peer] = []
        self.admit_as: Callable[[int], int | None] = lambda client: client or 41
        self.admission = asyncio.Event()
        """Cleared: the store does not answer."""
        self.admission.set()
        self.answer = True

    def connected(self, peer: Peer) -> None:
        self.peers.append(peer)
        self.events.append(("connected", peer.client, peer.generation))

    def received(self, peer: Peer, calls: list[Message]) -> None:
        self.frames.append(list(calls))
        for one in calls:
            if self.answer and isinstance(one, Call):
                peer.reply(one, Answer(one.shard, one.number, 0, one.arguments))

    def disconnected(self, peer: Peer) -> None:
        self.peers.remove(peer)
        self.events.append(("disconnected", peer.client, peer.generation))

    async def admit(self, client: int) -> int | None:
        await self.admission.wait()
        return self.admit_as(client)


class Listener:
    """Implements `LinkListener`: writes down what happens, and lets tests wait for it."""

    def __init__(self) -> None:
        self.welcome: Welcome | None = None
        self.messages: list[Any] = []
        self.frames: list[list[Any]] = []
        self.reasons: list[str] = []
        self._changed = asyncio.Event()

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        self.welcome = welcome
        self._changed.set()

    def received(self, link: Link, messages: list[Message]) -> None:
        self.frames.append(list(messages))
        self.messages += messages
        self._changed.set()

    def closed(self, link: Link, reason: str) -> None:
        self.reasons.append(reason)
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Return once `condition()` holds; looked at whenever something was heard."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_welcome(self) -> None:
        await self.until(lambda: self.welcome is not None or bool(self.reasons))
        assert self.welcome is not None, f"not welcomed: {self.reasons}"

    async def until_closed(self) -> str:
        await self.until(lambda: bool(self.reasons))
        return self.reasons[0]


class RawPeer(asyncio.Protocol):
    """A peer made of bytes: says what the test says, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.closed = asyncio.Event()
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not say so

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.closed.set()
        self._changed.set()

    def messages(self) -> list[Any]:
        """What it heard, read as handshake frames."""
        return [one for frame in FrameReader().feed(bytes(self.heard)) for one in frame]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                assert not self.closed.is_set(), f"closed while waiting: {self.messages()}"
                self._changed.clear()
                await self._changed.wait()

    async def until_closed(self, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            await self.closed.wait()


async def raw_peer(network: Network, address: str, first: bytes = b"") -> RawPeer:
    peer = RawPeer()
    await network.connect(lambda: peer, address)
    if first:
        peer.transport.write(first)
    return peer


def hello_frame(token: Token = TOKEN, nonce: bytes = bytes(32), terms: ClientTerms = CLIENT_TERMS) -> bytes:
    return encode_frame([ClientHandshake(terms, token, nonce).hello], HANDSHAKE_FRAME_BYTES_MAX)


async def trusted_raw_peer(network: Network, address: str, nonce: bytes = bytes(32)) -> RawPeer:
    """A raw peer that has done the handshake, and may now misbehave as a trusted one."""
    handshake = ClientHandshake(CLIENT_TERMS, TOKEN, nonce)
    peer = await raw_peer(network, address, encode_frame([handshake.hello], HANDSHAKE_FRAME_BYTES_MAX))
    await peer.until(lambda: bool(peer.messages()))
    for effect in handshake.received(peer.messages()[0]):
        peer.transport.write(encode_frame([effect.message], HANDSHAKE_FRAME_BYTES_MAX))  # type: ignore[union-attr]
    await peer.until(lambda: len(peer.messages()) == 2)
    assert isinstance(peer.messages()[1], Welcome)
    peer.heard.clear()
    return peer


def make_server(
    receiver: EchoReceiver, network: Network, world: World, settings: Settings | None = None, token: Token = TOKEN
) -> Server:
    return Server(
        receiver, app=APP, shards=256, token=token, settings=settings or Settings(), network=network, world=world
    )


async def join(
    network: Network,
    address: str,
    world: World,
    listener: Listener,
    *,
    settings: Settings | None = None,
    token: Token = TOKEN,
    app: str = APP,
    **more: Any,
) -> Link:
    access = Access(app_name=app, token=token, settings=settings or Settings(), world=world, network=network)
    link = Link(listener, address, access, **more)
    await link.open()
    return link
