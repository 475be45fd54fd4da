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
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import ProcessIdentity, Store
from ..sharding.host import Host
from ..sharding.messages import Message, Peer
from .network import Network
from .server import Server
from .token import Token

log = logging.getLogger("atoll.host")


class RunningHost:
    def __init__(self, host: Host, server: Server, address: str) -> None:
        self.host = host
        self.server = server
        self.address = address

    @property
    def incarnation(self) -> int:
        return self.host.incarnation


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
        incarnation = await store.register_host(address, node, process)
    except BaseException:
        server.close("this host could not register")
        raise
    host = Host(
        incarnation=incarnation,
        address=address,
        kinds=app.kinds,
        store=store,
        settings=settings,
        world=world,
        resources=resources,
    )
    server.receiver = host
    server.serve(incarnation)
    host.start()
    return RunningHost(host, server, address)


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
            log.exception("host %d cannot keep its lease", host.incarnation)
            reason = f"the lease keeper failed: {error}"
        if not loop.is_closed():
            loop.call_soon_threadsafe(host.end, reason)

    thread = threading.Thread(target=work, name=f"atoll-lease-{host.incarnation}", daemon=True)
    thread.start()
    return thread


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
