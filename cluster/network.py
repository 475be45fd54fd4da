"""Listening, connecting and probing: the only door to sockets, as a protocol, so that the simulator can be the network.

An address is `host:port`, with brackets around an IPv6 host (`[::1]:7700`).
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import socket
from collections.abc import Callable
from typing import Protocol

ProtocolFactory = Callable[[], asyncio.Protocol]

BACKLOG = 1024
"""Connections that the kernel holds for us while the loop is busy: a host's clients all come back at once after a
failover. A full one delays them (the kernel drops the SYN, they repeat it)."""

# A peer that vanished without a word is found by heartbeats (connection.py). The kernel's own probes are the second
# line, for a process too busy to beat: they fail after 10 + 3 * 5 = 25 s of silence.
_KEEPALIVE_IDLE_S = 10
_KEEPALIVE_INTERVAL_S = 5
_KEEPALIVE_COUNT = 3


class Probe(enum.StrEnum):
    """What a new connection to an address met."""

    ACCEPTED = "accepted"
    """Something listens there: the process, perhaps a stopped one, or another one by now."""
    REFUSED = "refused"
    """A live kernel said that nothing listens there: the process that did is gone."""
    UNKNOWN = "unknown"
    """No answer in time, or another error: proves nothing."""


class Listener(Protocol):
    @property
    def address(self) -> str:
        """`host:port`, with the port that was really taken."""
        ...

    def close(self) -> None:
        """Accept no more. A host never does this while it lives: a refused connection counts as proof of its death."""
        ...


class Network(Protocol):
    async def listen(self, factory: ProtocolFactory, host: str, port: int) -> Listener:
        """Accept connections at host:port (port 0: any free one), each with a protocol of its own from `factory`.

        Raises `OSError` when it cannot (port in use, no such address).
        """
        ...

    async def connect(self, factory: ProtocolFactory, address: str) -> asyncio.BaseTransport:
        """Connect to `address`. Raises `OSError` when it is refused or unreachable, `ValueError` when it is not an
        address; a silent network is waited for as long as the kernel does, so put a time-out around it."""
        ...

    async def probe(self, address: str, timeout_s: float) -> Probe:
        """Find out whether a process still listens at `address`, within `timeout_s` seconds. Never raises for what the
        network does. `REFUSED` is first-hand proof that the process that listened there is gone (protocol rule 16)."""
        ...


def split_address(address: str) -> tuple[str, int]:
    """`host:port` in two. Raises `ValueError` that shows the form."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or (":" in host and not bracketed) or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{address!r} is not an address: write host:port, for IPv6 [host]:port")
    if int(port) > 65_535:
        raise ValueError(f"{address!r} is not an address: the port is above 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TcpListener:
    """Implements `Listener` over an asyncio server."""

    def __init__(self, server: asyncio.Server, address: str) -> None:
        self._server = server
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        self._server.close()


class TcpNetwork:
    """Implements `Network` on the running event loop, asyncio's or uvloop's."""

    async def listen(self, factory: ProtocolFactory, host: str, port: int) -> TcpListener:
        loop = asyncio.get_running_loop()
        # No SO_REUSEPORT: it would let a second process share the port, and take half of the connections.
        server = await loop.create_server(factory, host, port, backlog=BACKLOG)
        for listening in server.sockets:
            _tune(listening)  # accepted connections inherit these options
        name = server.sockets[0].getsockname()
        return TcpListener(server, join_address(name[0], name[1]))

    async def connect(self, factory: ProtocolFactory, address: str) -> asyncio.BaseTransport:
        host, port = split_address(address)
        transport, _ = await asyncio.get_running_loop().create_connection(factory, host, port)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            _tune(connected)
        return transport

    async def probe(self, address: str, timeout_s: float) -> Probe:
        host, _ = split_address(address)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            # A name may lead to another machine by now, whose kernel refuses with full right: that proves nothing.
            numeric = False
        else:
            numeric = True
        try:
            async with asyncio.timeout(timeout_s):
                transport = await self.connect(asyncio.Protocol, address)
        except ConnectionRefusedError:
            return Probe.REFUSED if numeric else Probe.UNKNOWN
        except OSError:  # a TimeoutError among them
            return Probe.UNKNOWN
        transport.close()
        return Probe.ACCEPTED


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # writes are coalesced per tick already
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Linux has all three; elsewhere the system's own times apply.
    for option, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", _KEEPALIVE_COUNT),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
