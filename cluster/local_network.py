"""A network inside one process: what `atoll.local` runs on. The same protocols, frames and handshake as over TCP.

Bytes written in one tick of the loop arrive in the next. There is no loss, no delay and no flow control: the windows of
the layers above bound what is under way.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .network import Probe, ProtocolFactory


class LocalTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, name: str) -> None:
        super().__init__({"peername": name})
        self._loop = loop
        self._protocol = protocol
        self._peer: LocalTransport | None = None
        self._closing = False

    def join(self, peer: LocalTransport) -> None:
        self._peer = peer

    def write(self, data: Any) -> None:
        if not self._closing and self._peer is not None:
            self._loop.call_soon(self._peer.arrive, bytes(data))

    def arrive(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            if self._peer is not None:
                self._loop.call_soon(self._peer.close)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered here."""

    def pause_reading(self) -> None:
        """Never asked for: a transport that does not buffer never pauses its writer."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""


class LocalListener:
    def __init__(self, network: LocalNetwork, address: str) -> None:
        self._network = network
        self.address = address

    def close(self) -> None:
        self._network.forget(self.address)


class LocalNetwork:
    """Implements `Network` (cluster/network.py)."""

    def __init__(self) -> None:
        self._factories: dict[str, ProtocolFactory] = {}
        self._ports = 0

    async def listen(self, factory: ProtocolFactory, host: str, port: int) -> LocalListener:
        self._ports += 1
        address = f"{host}:{port or self._ports}"
        if address in self._factories:
            raise OSError(f"{address} is in use")
        self._factories[address] = factory
        return LocalListener(self, address)

    def forget(self, address: str) -> None:
        self._factories.pop(address, None)

    async def connect(self, factory: ProtocolFactory, address: str) -> asyncio.BaseTransport:
        accept = self._factories.get(address)
        if accept is None:
            raise ConnectionRefusedError(f"nothing listens at {address}")
        loop = asyncio.get_running_loop()
        here, there = factory(), accept()
        near, far = LocalTransport(loop, here, address), LocalTransport(loop, there, "local")
        near.join(far)
        far.join(near)
        there.connection_made(far)
        here.connection_made(near)
        return near

    async def probe(self, address: str, timeout_s: float) -> Probe:
        return Probe.ACCEPTED if address in self._factories else Probe.REFUSED
