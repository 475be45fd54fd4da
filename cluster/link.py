"""A link: the client's end of one connection to one host. It connects once; whether to do so again is the client's.

    open_link  ->  listener.welcomed  ->  listener.received ...  ->  listener.closed

`closed` comes exactly once for every link whose `open_link` returned, also when it was never welcomed. A link whose
`open_link` raised is never heard of.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ..actors.settings import Settings
from ..actors.world import World
from ..sharding.messages import Message
from .connection import Connection
from .handshake import ClientHandshake, ClientTerms, End, Refusal
from .network import Network
from .token import Token
from .wire import FROM_HOST, HANDSHAKE_FRAME_BYTES_MAX, NONCE_BYTES, Role, Welcome, encode_frame


class LinkListener(Protocol):
    """Who is told what happens on a link. Called on the loop; must not block."""

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        """The host is trusted and trusts us: `link.send` works from here on."""
        ...

    def received(self, link: Link, messages: list[Message]) -> None:
        """Messages of one frame, in order: Answer, Moved, OutOfOrder, TableUpdate, Credit."""
        ...

    def closed(self, link: Link, reason: str) -> None:
        """Nothing more arrives or leaves. `link.refusal` says whether the host, or we, refused the handshake. Of what
        was sent and not answered, nothing is known."""
        ...


class Link(Connection):
    def __init__(
        self,
        listener: LinkListener,
        address: str,
        *,
        app: str,
        token: Token,
        settings: Settings,
        world: World,
        role: Role = "client",
        client: int = 0,
        generation: int = 0,
        software: str = "",
    ) -> None:
        super().__init__(settings, world)
        self.address = address
        self.refusal: Refusal | None = None
        """Why the handshake failed, None when it did not (or not by a refusal)."""
        self._listener = listener
        terms = ClientTerms(
            app=app,
            role=role,
            client=client,
            generation=generation,
            frame_bytes_max=settings.frame_bytes_max,
            software=software,
        )
        self._client_handshake = ClientHandshake(terms, token, world.entropy(NONCE_BYTES))

    @property
    def client(self) -> int:
        """The session that it asked to go on with; 0 for a new one."""
        return self._client_handshake.hello.client

    @property
    def congested(self) -> bool:
        """The host takes less than is sent: what is sent now waits in this process's memory."""
        return self._write_paused

    @property
    def closing(self) -> bool:
        """What is sent now is dropped."""
        return self._closing

    def abandon(self) -> None:
        """Nobody waits for this link any more: its listener hears nothing."""
        self._reported = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._write(encode_frame([self._client_handshake.hello], HANDSHAKE_FRAME_BYTES_MAX))

    @property
    def _handshake(self) -> ClientHandshake:
        return self._client_handshake

    def _opened(self, welcome: Welcome) -> None:
        self._trust(FROM_HOST, welcome.frame_bytes_max)
        self._listener.welcomed(self, welcome)

    def _arrived(self, messages: list[Any]) -> None:
        self._listener.received(self, messages)

    def _refused(self, end: End) -> None:
        self.refusal = end.refusal
        super()._refused(end)

    def _ended(self, reason: str) -> None:
        self._listener.closed(self, reason)


async def open_link(
    network: Network,
    address: str,
    listener: LinkListener,
    *,
    app: str,
    token: Token,
    settings: Settings,
    world: World,
    role: Role = "client",
    client: int = 0,
    generation: int = 0,
    software: str = "",
) -> Link:
    """Connect to the host at `address` and start the handshake; `listener` hears how it goes.

    `client` is the session to go on with (0: register me), `generation` grows with each connection of that client.
    Raises `OSError` when there is no connection, `TimeoutError` (an `OSError`) after `handshake_timeout_s`.
    """
    link = Link(
        listener,
        address,
        app=app,
        token=token,
        settings=settings,
        world=world,
        role=role,
        client=client,
        generation=generation,
        software=software,
    )
    try:
        async with asyncio.timeout(settings.handshake_timeout_s):
            await network.connect(lambda: link, address)
    except BaseException:
        link.abandon()
        raise
    return link
