"""One host as a running thing: listener, registration, data plane and lease, put together in the order that is safe.

    listen (the address is known)  ->  register (the log exists, then the row)  ->  serve (peers are let in)  ->  work

Used by a Ray actor, by a plain process and by tests alike.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

from ..actors.app import App
from ..actors.errors import known_rejections
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import ProcessIdentity, Store
from ..persistence.stripes import ONLY, Stripe
from ..sharding.host import Host
from ..sharding.messages import Message, Peer
from .client import Client
from .courier import HostCourier
from .link import Access
from .network import Network
from .server import Server
from .striped import StripedClient, StripedCourier
from .token import Token

log = logging.getLogger("atoll.host")


class RunningHost:
    def __init__(self, host: Host, server: Server, address: str, asker: _Asker, courier: _Courier) -> None:
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
    stripe: Stripe = ONLY,
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
    """Bring up one host over an opened store, which is that stripe. The caller keeps its lease (`keep_lease_on_thread`
    or a task of `host.keep_lease`) and ends the process when `host.ended` resolves.

    Raises `OSError` when the port is taken, `StoreError` when the store cannot register it; nothing is left behind.
    """
    server = Server(
        _Nobody(),
        app=app.name,
        shards=settings.shards,
        stripe=stripe,
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
    asker, courier = _asker(access, stripe, address), _courier(access, stripe, address)

    def told_hosts(addresses: Sequence[Sequence[str]]) -> None:
        for sender in (asker, courier):
            if isinstance(sender, StripedClient | StripedCourier):
                sender.tell(addresses)

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
        stripe=stripe,
        told_hosts=told_hosts,
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


_Asker = Client | StripedClient
_Courier = HostCourier | StripedCourier


def _asker(access: Access, stripe: Stripe, address: str) -> _Asker:
    """The host as a client of its own cluster, for the asks of its handlers. Connects when the first one comes."""
    clients = [
        Client(
            access,
            [address] if index == stripe.index else [],
            rejections=known_rejections(),
            role="host",
            stripe=Stripe(index, stripe.count),
        )
        for index in range(stripe.count)
    ]
    return clients[0] if stripe.count == 1 else StripedClient(clients, access.settings.shards)


def _courier(access: Access, stripe: Stripe, address: str) -> _Courier:
    couriers = [
        HostCourier(access, [address] if index == stripe.index else [], Stripe(index, stripe.count))
        for index in range(stripe.count)
    ]
    return couriers[0] if stripe.count == 1 else StripedCourier(couriers, stripe.index, access.settings.shards)


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
