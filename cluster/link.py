"""A link: the client's end of one connection to one host. It connects once; whether to do so again is the client's.

    open  ->  listener.welcomed  ->  listener.received ...  ->  listener.closed

`closed` comes exactly once for every link whose `open` returned, also when it was never welcomed. A link whose `open`
raised is never heard of.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec

from ..actors.settings import Settings
from ..actors.world import World
from ..sharding.messages import Call, Credit, Message
from .connection import Connection
from .credits import Allowance
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
        """Messages of one frame, in order: Answer, Moved, OutOfOrder, TableUpdate, StripeHosts, Credit."""
        ...

    def closed(self, link: Link, reason: str) -> None:
        """Nothing more arrives or leaves. `link.refusal` says whether the host, or we, refused the handshake. Of what
        was sent and not answered, nothing is known."""
        ...


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to speak to an app's hosts, whoever does."""

    app_name: str
    token: Token
    settings: Settings
    world: World
    network: Network
    software: str = ""
    """This end's version of Atoll, for the hosts' logs."""


class Link(Connection):
    def __init__(
        self,
        listener: LinkListener,
        address: str,
        access: Access,
        *,
        role: Role = "client",
        client: int = 0,
        generation: int = 0,
        stripe: int | None = None,
    ) -> None:
        """`client` is the session to go on with (0: register me), `generation` grows with each connection of it.
        `stripe`: the host must be one of that stripe."""
        super().__init__(access.settings, access.world)
        self.address = address
        self.refusal: Refusal | None = None
        """Why the handshake failed, None when it did not (or not by a refusal)."""
        self.allowance = Allowance()
        """How many calls it may send."""
        self._listener = listener
        self._network = access.network
        terms = ClientTerms(
            app=access.app_name,
            role=role,
            client=client,
            generation=generation,
            frame_bytes_max=access.settings.frame_bytes_max,
            software=access.software,
            stripe=stripe,
        )
        self._client_handshake = ClientHandshake(terms, access.token, access.world.entropy(NONCE_BYTES))

    async def open(self) -> None:
        """Connect to the host and start the handshake; the listener hears how it goes. Once.

        Raises `OSError` when there is no connection, `TimeoutError` (an `OSError`) after `handshake_timeout_s`.
        """
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
                await self._network.connect(lambda: self, self.address)
        except BaseException:
            self._reported = True  # nobody waits for it any more: its listener hears nothing
            raise

    @property
    def client(self) -> int:
        """The session that it asked to go on with; 0 for a new one."""
        return self._client_handshake.hello.client

    def carry(self, call: Call) -> None:
        """Send a call, for which there is room in the allowance."""
        self.allowance.sent(len(call.arguments))
        self.send(call)

    @property
    def congested(self) -> bool:
        """The host takes less than is sent: what is sent now waits in this process's memory."""
        return self._write_paused

    @property
    def closing(self) -> bool:
        """What is sent now is dropped."""
        return self._closing

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._write(encode_frame([self._client_handshake.hello], HANDSHAKE_FRAME_BYTES_MAX))

    @property
    def _handshake(self) -> ClientHandshake:
        return self._client_handshake

    def _opened(self, welcome: Welcome) -> None:
        self._trust(FROM_HOST, welcome.frame_bytes_max)
        self.allowance.granted(Credit(welcome.window_commands, welcome.window_bytes))
        self._listener.welcomed(self, welcome)

    def _arrived(self, messages: list[Any]) -> None:
        self._listener.received(self, messages)

    def _refused(self, end: End) -> None:
        self.refusal = end.refusal
        super()._refused(end)

    def _ended(self, reason: str) -> None:
        self._listener.closed(self, reason)
