"""The Python API: `atoll.connect` to a running cluster, `atoll.local` for all of it in this process.

Both give a `Cluster`, from which `entity(Kind, id)` makes references. A cluster is used as an async context manager:

    async with atoll.connect("tcp://10.0.0.1:7700,10.0.0.2:7700", token=token) as cluster:
        await cluster.entity(Account, "alice").deposit(10)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from ..actors.app import App
from ..actors.entity import Entity
from ..actors.ids import checked_entity_id
from ..actors.kind import kind_of
from ..actors.reference import bind_caller, reference, unbind_caller
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.memory import MemoryStore
from ..persistence.open import open_store
from .client import Client
from .coordination import Coordination
from .hosting import start_host
from .local_network import LocalNetwork
from .network import Network, TcpNetwork
from .system import SystemWorld
from .token import Token

E = TypeVar("E", bound=Entity)

CONNECT_TIMEOUT_S = 10.0


class Cluster:
    """A connected cluster. Make references with `entity`; they stay usable for as long as it is open."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def app_name(self) -> str:
        return self.client.app_name

    def entity(self, kind: type[E], id: str) -> E:
        """The address of one entity, typed as its class. Activates nothing; raises `InvalidCommand` for an ID that
        is empty, longer than 255 bytes of UTF-8, or not a string."""
        target: E = reference(self.client, kind_of(kind), checked_entity_id(id))
        return target


def software() -> str:
    return f"atoll {version('atoll')}"


@contextlib.asynccontextmanager
async def connected(
    app_name: str,
    addresses: Sequence[str],
    *,
    token: Token,
    settings: Settings,
    world: World,
    network: Network,
    app: App | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> AsyncIterator[Cluster]:
    """A cluster over the given hosts; everything from outside is handed in (tests and the simulator use this)."""
    client = Client(
        app_name,
        addresses,
        token=token,
        settings=settings,
        world=world,
        network=network,
        rejections=app.rejections if app is not None else {},
        software=software(),
    )
    try:
        await client.open(timeout_s)
        bind_caller(client)
        yield Cluster(client)
    finally:
        unbind_caller(client)
        await client.close()


@contextlib.asynccontextmanager
async def local(app: App, *, store: str | None = None) -> AsyncIterator[Cluster]:
    """The whole of Atoll in this process, without Ray: one host, the same API, codec and commit path.

    `store`: a store URL (`sqlite:PATH`); by default everything is in memory and gone at the end.
    """
    world, network = SystemWorld(), LocalNetwork()
    settings, _ = Settings.load(app.settings_asked, os.environ)
    token = Token(world.entropy(32))
    opened = open_store(store) if store is not None else MemoryStore()
    await opened.open(app.name, settings.shards)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(opened.close)
        resources: Any = None
        if app.resources is not None:
            resources = await stack.enter_async_context(app.resources())
        running = await start_host(
            app,
            store=opened,
            settings=settings,
            world=world,
            network=network,
            token=token,
            resources=resources,
            software=software(),
        )
        host = running.host
        coordination = Coordination(
            app.name, store=opened, settings=settings, world=world, network=network, token=token
        )
        tasks = [
            world.spawn(host.keep_lease(host.lease_renewed), "atoll-lease"),
            world.spawn(coordination.run(), "atoll-coordinator"),
        ]
        stack.push_async_callback(_end, tasks)
        stack.push_async_callback(host.stop)
        cluster = await stack.enter_async_context(
            connected(
                app.name, [running.address], token=token, settings=settings, world=world, network=network, app=app
            )
        )
        host.ownership.poke()
        await cluster.client.table_complete()
        yield cluster


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def connect(
    target: str,
    *,
    token: str | bytes | None = None,
    token_file: str | os.PathLike[str] | None = None,
    app: App | str | None = None,
    timeout: float = CONNECT_TIMEOUT_S,  # noqa: ASYNC109 - the API's word; it bounds the first connection only
) -> AsyncIterator[Cluster]:
    raise NotImplementedError
    yield


_ = TcpNetwork
