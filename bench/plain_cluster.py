"""A cluster of plain processes on this machine, without Ray: N hosts over one store or several, and a coordinator.

    async with plain_cluster("counters:app", "bench", folder, hosts=2) as cluster:
        async with cluster.connect() as client:
            await client.entity(Counter, "a").add(1)
        cluster.kill(cluster.hosts[0])

Each host is a process of its own (`python -m atoll.cluster.host_process`), as Ray would start it; the coordinator runs
in the calling process, on its event loop. Nothing outlives the `async with`: the hosts are killed, which is as safe for
them as any other end. The folder is the caller's, and keeps the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster, connected
from atoll.cluster.coordination import Coordination
from atoll.cluster.host_process import HostSpec
from atoll.cluster.network import TcpNetwork
from atoll.cluster.stores import open_all
from atoll.cluster.stripe_hosts import StripeDirectory
from atoll.cluster.system import SystemWorld
from atoll.cluster.token import Token, make_token_file
from atoll.persistence.open import open_store
from atoll.persistence.spi import Store
from atoll.persistence.stripes import Stripe

START_TIMEOUT_S = 60.0
"""A host is up in about half a second; on a machine under load it may take many times as long."""


class HostDidNotStart(RuntimeError):
    """The process ended, or said nothing in time; the text holds what it wrote."""


class HostProcess:
    """One running host."""

    def __init__(self, process: asyncio.subprocess.Process, stripe: int, incarnation: int, address: str) -> None:
        self.process = process
        self.stripe = stripe
        self.incarnation = incarnation
        self.address = address

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; SIGKILL unless another one is asked for."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(sign)


class PlainCluster:
    """Made by `plain_cluster`."""

    def __init__(
        self,
        app: str,
        app_name: str,
        app_dir: Path | None,
        folder: Path,
        settings: Settings,
        asked: Mapping[str, Any],
        urls: Sequence[str],
    ) -> None:
        self.app_name = app_name
        self.folder = folder
        self.store_urls = tuple(urls) or (f"sqlite:{folder / 'store'}",)
        self.token_file = folder / "token"
        self.token: Token = make_token_file(self.token_file, os.urandom(32))
        self.settings = settings
        self.stores = [open_store(url) for url in self.store_urls]
        """The coordinator's: open from beginning to end."""
        self.stripes: list[Stripe] = []
        self.hosts: list[HostProcess] = []
        """Every host that was started, killed ones included."""
        self._coordinators: list[asyncio.Task[None]] = []
        self._spec = HostSpec(
            app=app,
            app_dir=None if app_dir is None else str(app_dir),
            store=self.store_url,
            settings=dict(asked),
            token_file=str(self.token_file),
        )

    @property
    def store_url(self) -> str:
        return self.store_urls[0]

    @property
    def store(self) -> Store:
        """The only one, or the first."""
        return self.stores[0]

    async def open(self) -> None:
        self.stripes = await open_all(self.stores, self.app_name, self.settings.shards)

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    @property
    def addresses(self) -> list[str]:
        """Of the hosts that were not killed."""
        return [host.address for host in self.hosts if host.alive]

    async def start_host(self, bind: str = "127.0.0.1", within: Sequence[str] = (), stripe: int = 0) -> HostProcess:
        """Start one more host, and return when it serves (it owns no shards yet). `within`: a command that runs the
        process, with the process as its arguments. `stripe`: whose. Raises `HostDidNotStart`."""
        process = await asyncio.create_subprocess_exec(
            *within,
            sys.executable,
            "-m",
            "atoll.cluster.host_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                spec = replace(self._spec, bind=bind, store=self.store_urls[stripe], stripe=self.stripes[stripe])
                process.stdin.write(msgspec.json.encode(spec))
                process.stdin.close()
                line = await process.stdout.readline()
        except (TimeoutError, OSError) as error:
            line = repr(error).encode()
        try:
            ready = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            if process.returncode is None:
                process.kill()
            raise HostDidNotStart(f"a host did not start ({line.decode() or 'no answer'}); see its log above") from None
        host = HostProcess(process, stripe, ready["incarnation"], ready["address"])
        self.hosts.append(host)
        return host

    @contextlib.asynccontextmanager
    async def connect(self, *, discover: bool = False) -> AsyncIterator[Cluster]:
        """A client of this cluster in the calling process, once every shard is served. `discover`: it finds the hosts
        that are started later also when all that it knew are gone."""

        async def addresses() -> list[str]:
            return self.addresses

        async with connected(
            self.app_name,
            self.addresses,
            token=self.token,
            settings=self.settings,
            world=SystemWorld(),
            network=TcpNetwork(),
            discover=addresses if discover else None,
        ) as cluster:
            await cluster.client.table_complete()
            yield cluster

    def start_coordinator(self) -> None:
        """There is one from the beginning; after `stop_coordinator`, another one."""
        assert not self._coordinators
        world = SystemWorld()
        directory = StripeDirectory(len(self.stores))
        for store, stripe in zip(self.stores, self.stripes, strict=True):
            coordination = Coordination(
                self.app_name,
                store=store,
                settings=self.settings,
                world=world,
                network=TcpNetwork(),
                token=self.token,
                hosts_wanted=1,  # all that are wanted are there already; later ones may well be alone
                stripe=stripe,
                directory=directory,
            )
            self._coordinators.append(world.spawn(coordination.run(), "coordinator"))

    async def stop_coordinator(self) -> None:
        """End it wherever it is: what it handed to the store may still take effect. Its connections stay open, as those
        of one that hangs."""
        tasks, self._coordinators = self._coordinators, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Kill what still runs, and wait for it."""
        await self.stop_coordinator()
        for host in self.hosts:
            host.kill()
        await asyncio.gather(*(host.process.wait() for host in self.hosts))


@contextlib.asynccontextmanager
async def plain_cluster(
    app: str,
    app_name: str,
    folder: Path,
    *,
    app_dir: Path | None = None,
    hosts: int = 1,
    settings: Mapping[str, Any] | None = None,
    store: str | Sequence[str] | None = None,
) -> AsyncIterator[PlainCluster]:
    """Run `app` (`module:app`, found in `app_dir`), which calls itself `app_name`, on so many host processes.

    `folder` must be empty or new. `settings`: those that differ from the defaults, by name. `store`: its URL; without
    one, SQLite in the folder; of several the hosts are divided among them.
    """
    asked = dict(settings or {})
    resolved = msgspec.convert(asked, Settings)
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - once, before anything runs
    urls = (store,) if isinstance(store, str) else tuple(store or ())
    cluster = PlainCluster(app, app_name, app_dir, folder, resolved, asked, urls)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.close)
        await cluster.open()
        stack.push_async_callback(cluster.stop)
        await asyncio.gather(*(cluster.start_host(stripe=n % len(cluster.stores)) for n in range(hosts)))
        cluster.start_coordinator()
        yield cluster
