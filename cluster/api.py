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
from pathlib import Path
from typing import Any, TypeVar

from ..actors.app import App
from ..actors.entity import Entity
from ..actors.errors import known_rejections
from ..actors.ids import KIND_PATTERN, checked_entity_id
from ..actors.kind import kind_of
from ..actors.reference import bind_caller, reference, unbind_caller
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.open import open_store
from .carrier import Discover
from .client import Client
from .coordination import Coordination
from .hosting import start_host
from .link import Access
from .local_network import LocalNetwork
from .network import Network, TcpNetwork, split_address
from .stores import open_all, store_urls
from .stripe_hosts import StripeDirectory
from .striped import StripedClient
from .system import SystemWorld
from .token import Token, TokenError, read_token_file
from .token import token_file as token_file_named
from .wire import ANY_APP

E = TypeVar("E", bound=Entity)

CONNECT_TIMEOUT_S = 10.0


class Cluster:
    """A connected cluster. Make references with `entity`; they stay usable for as long as it is open."""

    def __init__(self, client: Client | StripedClient) -> None:
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
    timeout_s: float = CONNECT_TIMEOUT_S,
    discover: Discover | None = None,
) -> AsyncIterator[Cluster]:
    """A cluster over the given hosts; everything from outside is handed in (tests and the simulator use this)."""
    access = Access(
        app_name=app_name, token=token, settings=settings, world=world, network=network, software=software()
    )
    client: Client | StripedClient
    client = first = Client(access, addresses, rejections=known_rejections(), discover=discover)
    try:
        await first.open(timeout_s)
        if first.stripe.count > 1:
            client = StripedClient.beside(first, addresses)
        bind_caller(client)
        yield Cluster(client)
    finally:
        unbind_caller(client)
        await client.close()


@contextlib.asynccontextmanager
async def local(app: App, *, store: str | Sequence[str] | None = None) -> AsyncIterator[Cluster]:
    """The whole of Atoll in this process, without Ray: one host, the same API, codec and commit path.

    `store`: a store URL (`sqlite:PATH`); by default everything is in memory and gone at the end. With several URLs,
    always in the same order, there is a host for each.
    """
    world, network = SystemWorld(), LocalNetwork()
    settings, _ = Settings.load(app.settings_asked, os.environ)
    token = Token(world.entropy(32))
    urls = ("memory:",) if store is None else store_urls(app, (store,) if isinstance(store, str) else store, {})
    stores = [open_store(url) for url in urls]
    async with contextlib.AsyncExitStack() as stack:
        opened = await open_all(stores, app.name, settings.shards)
        for one in stores:
            stack.push_async_callback(one.close)
        resources: Any = None
        if app.resources is not None:
            resources = await stack.enter_async_context(app.resources())
        hosts = [
            await start_host(
                app,
                store=one,
                stripe=stripe,
                settings=settings,
                world=world,
                network=network,
                token=token,
                resources=resources,
                software=software(),
            )
            for one, stripe in zip(stores, opened, strict=True)
        ]
        directory = StripeDirectory(len(stores))
        tasks = []
        for one, stripe, running in zip(stores, opened, hosts, strict=True):
            coordination = Coordination(
                app.name,
                store=one,
                settings=settings,
                world=world,
                network=network,
                token=token,
                version=app.version,
                stripe=stripe,
                directory=directory,
            )
            host = running.host
            tasks.append(world.spawn(host.keep_lease(host.lease_renewed), "atoll-lease"))
            tasks.append(world.spawn(coordination.run(), "atoll-coordinator"))
        stack.push_async_callback(_end, tasks)
        for running in hosts:
            stack.push_async_callback(running.stop)
        addresses = [running.address for running in hosts]
        cluster = await stack.enter_async_context(
            connected(app.name, addresses, token=token, settings=settings, world=world, network=network)
        )
        for running in hosts:
            running.host.ownership.poke()
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
    token: str | Token | None = None,
    token_file: str | os.PathLike[str] | None = None,
    timeout: float = CONNECT_TIMEOUT_S,  # noqa: ASYNC109 - the API's word; it bounds the first connection only
) -> AsyncIterator[Cluster]:
    """Connect to a running app.

    `target`: the app's name, from inside its Ray cluster (or any machine that `ray.init(address="auto")` works on), or
    `tcp://host:port,host:port` from anywhere. Over tcp the token is asked for: `token` (its text), else `token_file`,
    else the file that `ATOLL_TOKEN_FILE` names.

    Raises `Unavailable` when no host answers within `timeout` seconds or the hosts refuse, `TokenError` when there is
    no usable token, `RayProblem` when there is no Ray cluster, `ValueError` for a target that is neither.
    """
    settings, _ = Settings.load({}, os.environ)
    discover = None
    if target.startswith("tcp://"):
        app_name = ANY_APP
        addresses = [address for address in target.removeprefix("tcp://").rstrip("/").split(",") if address]
        for address in addresses:
            split_address(address)
        if not addresses:
            raise ValueError(f"{target!r} names no host: write tcp://host:port,host:port")
        secret = _token(token, token_file)
    else:
        if not KIND_PATTERN.fullmatch(target):
            raise ValueError(f"{target!r} is neither an app's name nor tcp://host:port,host:port")
        from . import discovery  # noqa: PLC0415 - imports Ray, which a client over tcp does without

        app_name = target
        found = await discovery.find_hosts(app_name)
        addresses = list(found.addresses)
        secret = _token(token, token_file or found.token_file)

        async def discover() -> Sequence[str]:
            return (await discovery.find_hosts(target)).addresses

    async with connected(
        app_name,
        addresses,
        token=secret,
        settings=settings,
        world=SystemWorld(),
        network=TcpNetwork(),
        timeout_s=timeout,
        discover=discover,
    ) as cluster:
        yield cluster


def _token(token: str | Token | None, path: str | os.PathLike[str] | None) -> Token:
    if isinstance(token, Token):
        return token
    if token is not None:
        return Token.parse(token)
    file = Path(path) if path is not None else token_file_named(os.environ)
    if file is None:
        raise TokenError(
            "a connection over tcp needs the cluster's token: give token=..., token_file=..., or name its file in "
            "ATOLL_TOKEN_FILE (`atoll status` shows where it is)"
        )
    return read_token_file(file)
