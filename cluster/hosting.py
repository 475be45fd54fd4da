"""One host as a running thing: listener, registration, data plane and lease, put together in the order that is safe.

    listen (the address is known)  ->  register (the log exists, then the row)  ->  serve (peers are let in)  ->  work

Used by a Ray actor, by a plain process and by tests alike.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from ..actors.app import App
from ..actors.calls import Request
from ..actors.errors import known_rejections
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import ProcessIdentity, Store
from ..sharding.host import Host
from ..sharding.messages import Message, Peer
from .client import Client
from .courier import HostCourier
from .link import Access
from .network import Network
from .server import Server
from .token import Token

CONNECT_TIMEOUT_S = 10.0

log = logging.getLogger("atoll.host")


class RunningHost:
    def __init__(self, host: Host, server: Server, address: str, asker: HostAsker, courier: HostCourier) -> None:
        self.host = host
        self.server = server
        self.address = address
        self._asker = asker
        self._courier = courier

    @property
    def incarnation(self) -> int:
        return self.host.incarnation

    async def stop(self) -> None:
        """Give back every shard that can be given back, then stop working, and speaking to the other hosts."""
        await self.host.stop()
        await self._asker.close()
        self._courier.close()


async def start_host(
    app: App,
    *,
    store: Store,
    settings: Settings,
    world: World,
    network: Network,
    token: Token,
    bind: str = "127.0.0.1",
    port: int = 0,
    node: str = "",
    weight: float = 1.0,
    process: ProcessIdentity | None = None,
    resources: Any = None,
    software: str = "",
) -> RunningHost:
    """Bring up one host over an opened store. The caller keeps its lease (`keep_lease_on_thread` or a task of
    `host.keep_lease`) and ends the process when `host.ended` resolves.

    Raises `OSError` when the port is taken, `StoreError` when the store cannot register it; nothing is left behind.
    """
    server = Server(
        _Nobody(),
        app=app.name,
        shards=settings.shards,
        token=token,
        settings=settings,
        network=network,
        world=world,
        software=software,
    )
    address = await server.listen(bind, port)
    try:
        incarnation = await store.register_host(address, node, process, version=app.version, weight=weight)
    except BaseException:
        server.close("this host could not register")
        raise
    access = Access(app_name=app.name, token=token, settings=settings, world=world, network=network, software=software)
    asker, courier = HostAsker(access, address), HostCourier(access, [address])
    host = Host(
        incarnation=incarnation,
        address=address,
        kinds=app.kinds,
        store=store,
        settings=settings,
        world=world,
        resources=resources,
        app_name=app.name,
        asker=asker,
        courier=courier,
    )
    server.receiver = host
    host.budget.hold_all = server.hold
    host.budget.narrow = server.narrow
    server.serve(incarnation)
    host.start()
    return RunningHost(host, server, address, asker, courier)


def keep_lease_on_thread(host: Host) -> threading.Thread:
    """Keep the lease on a thread with a loop of its own, so that handlers that burn CPU do not cost the host its
    shards. The thread is a daemon: it ends with the process."""
    loop = asyncio.get_running_loop()

    def renewed() -> None:
        loop.call_soon_threadsafe(host.lease_renewed)

    def work() -> None:
        reason = "condemned: the coordinator gave this host up"
        try:
            asyncio.run(host.keep_lease(renewed))
        except Exception as error:
            log.exception("host %d cannot keep its lease", host.incarnation, extra=about(incarnation=host.incarnation))
            reason = f"the lease keeper failed: {error}"
        if not loop.is_closed():
            loop.call_soon_threadsafe(host.end, reason)

    thread = threading.Thread(target=work, name=f"atoll-lease-{host.incarnation}", daemon=True)
    thread.start()
    return thread


class HostAsker:
    """The host as a client of its own cluster, for the asks of its handlers; connected when the first one comes."""

    def __init__(self, access: Access, address: str) -> None:
        self._opening = asyncio.Lock()
        self._opened = False
        self._client = Client(access, [address], rejections=known_rejections(), role="host")

    @property
    def app_name(self) -> str:
        return self._client.app_name

    async def call(self, request: Request) -> bytes:
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    await self._client.open(request.timeout_s or CONNECT_TIMEOUT_S)
                    self._opened = True
        return await self._client.call(request)

    async def close(self) -> None:
        await self._client.close()


class _Nobody:
    """Stands in as the receiver until the host is registered: the server lets nobody in before that."""

    def connected(self, peer: Peer) -> None:
        raise AssertionError

    def received(self, peer: Peer, calls: list[Message]) -> None:
        raise AssertionError

    def disconnected(self, peer: Peer) -> None:
        raise AssertionError

    async def admit(self, client: int) -> int | None:
        raise AssertionError
