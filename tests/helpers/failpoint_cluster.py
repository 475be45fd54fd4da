"""A cluster of real host processes over one store, which die where they are told to (failpoint_host.py).

    three hosts: each is told to die there; one gets there and dies; the others take its shards over; a new one starts

The coordinator and the client run in the test's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
from bank_of_messages import Load, Violation, app
from failpoint_host import STEPS, Birth, Order

from atoll.actors.settings import Settings
from atoll.cluster.api import Cluster, connected
from atoll.cluster.coordination import Coordination
from atoll.cluster.host_process import HostSpec
from atoll.cluster.network import TcpNetwork
from atoll.cluster.system import SystemWorld
from atoll.cluster.token import make_token_file
from atoll.persistence.open import open_store
from atoll.persistence.spi import ShardState

HELPERS = Path(__file__).resolve().parent
HOSTS = 3
SETTINGS = {
    "shards": 8,
    "lease_s": 10.0,  # no death waits for it, and nobody loses its shards to a busy machine
    "store_poll_s": 0.05,
    "retry_max_s": 0.05,
    "checkpoint_s": 0.05,  # so that most messages and entries meet a checkpoint
    "delivered_flush_s": 0.01,
    "tell_retry_first_s": 0.005,
    "tell_retry_max_s": 0.05,
    "tell_attempts_max": 30,
    "mailbox_commands_max": 12,  # so that some tells go straight to the store
    "mailbox_page": 4,
}
PATIENCE_S = 40.0
"""For what takes a tenth of a second on a machine that has nothing else to do."""


@contextlib.contextmanager
def host_forker() -> Iterator[str]:
    """The process that hosts are forked from; its socket. One serves all tests of a module."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/hosts"
        command = [sys.executable, str(HELPERS / "failpoint_host.py"), path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield path
            finally:
                process.kill()


class HostProcess(asyncio.Protocol):
    """One host process, from the test's side."""

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._text = b""
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._transport: asyncio.WriteTransport
        self.dead = asyncio.Event()
        self._killed = False
        self.pid = 0
        self.incarnation = 0
        self.address = ""

    async def ready(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            said = await self._said.get()
        assert said, "a host did not start; see its words above"
        self.pid, self.incarnation, self.address = said["pid"], said["incarnation"], said["address"]

    @property
    def alive(self) -> bool:
        return not self.dead.is_set()

    @property
    def is_missed(self) -> bool:
        """It died, and neither of its own hand nor of ours."""
        return not (self.alive or self._killed or Path(self._birth.last_words).exists())

    async def counts(self) -> dict[str, int]:
        """What it has in hand, all zero when it has nothing to do; nothing when it is dead. It forgets its order."""
        self.write(Order())
        async with asyncio.timeout(PATIENCE_S):
            return await self._said.get()

    def kill(self) -> None:
        if self.alive:
            self._killed = True
            os.kill(self.pid, signal.SIGKILL)

    def write(self, what: Birth | Order) -> None:
        self._transport.write(msgspec.json.encode(what) + b"\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.write(self._birth)

    def data_received(self, data: bytes) -> None:
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._said.put_nowait(msgspec.json.decode(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self.dead.set()
        self._said.put_nowait({})  # whoever waits for its words


class FailpointCluster:
    """Made by `failpoint_cluster`."""

    def __init__(self, host_forker: str, folder: Path, luck: random.Random, mutation: str, store: str) -> None:
        self._forker = host_forker
        self._luck = luck
        self._mutation = mutation
        self._folder = folder
        self._born = 0
        self.settings = msgspec.convert(SETTINGS, Settings)
        self.token = make_token_file(folder / "token", os.urandom(32))
        self.store = open_store(store)
        self.hosts: list[HostProcess] = []
        """The living, and those whose death nobody looked at yet."""
        self.client: Cluster
        self._spec = HostSpec(
            app="bank_of_messages:app",
            app_dir=str(HELPERS),
            store=store,
            settings=SETTINGS,
            token_file=str(folder / "token"),
        )
        self._loads = 0

    async def start_host(self) -> None:
        self._born += 1
        last_words = str(self._folder / f"died-{self._born}")
        birth = Birth(self._spec, self._luck.randrange(2**32), last_words, self._mutation)
        loop = asyncio.get_running_loop()
        _, host = await loop.create_unix_connection(lambda: HostProcess(birth), self._forker)
        await host.ready()
        self.hosts.append(host)

    async def stop(self) -> None:
        for host in self.hosts:
            host.kill()
        await asyncio.gather(*(host.dead.wait() for host in self.hosts))

    async def addresses(self) -> list[str]:
        return [host.address for host in self.hosts if host.alive]

    async def owners(self) -> list[HostProcess]:
        """Those that own shards, once every shard is owned by a living host."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                alive = {host.incarnation: host for host in self.hosts if host.alive}
                rows = await self.store.shards()
                if all(row.state is ShardState.OWNED and row.owner in alive for row in rows):
                    return [alive[owner] for owner in sorted({row.owner for row in rows if row.owner is not None})]
                await asyncio.sleep(0.005)

    # ---- deaths -----------------------------------------------------------------------------------------------------

    async def kill_at(self, step: str) -> None:
        """Let a host die there, under the load that goes on, and replace it. Fails when none gets there."""
        nth = self._luck.randint(1, STEPS[step])
        owners = await self.owners()
        victim = self._luck.choice(owners) if step.startswith("recovery") else None
        armed = [host for host in self.hosts if host is not victim]
        for host in armed:
            host.write(Order(step, nth))
        if victim is not None:
            victim.kill()
        handing_over = owners if "gives back" in step else [owner for owner in owners if self._luck.random() < 0.1]
        for host in handing_over:
            host.write(Order(give_back=True))
        deaths = [asyncio.ensure_future(host.dead.wait()) for host in armed]
        done, rest = await asyncio.wait(deaths, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()
        self._bury()
        assert done, f"it did not bite: no host got to {step!r} {nth} times; {await self.store.shards()}"
        for host in armed:
            await host.counts()  # forgets its order, or is dead too
        self._bury()
        while len(self.hosts) < HOSTS:
            await self.start_host()

    def _bury(self) -> None:
        for host in self.hosts:
            assert not host.is_missed, f"host {host.incarnation} ended by itself; see its words above"
        self.hosts = [host for host in self.hosts if host.alive]

    # ---- work -------------------------------------------------------------------------------------------------------

    async def deaths_under_load(self, step: str, times: int, *, settle_s: float = PATIENCE_S) -> Load:
        """Kill a host at that step, again and again, while a client works. Raises `Violation` when anything of that
        work was lost, doubled or reordered."""
        self._loads += 1
        load = Load(self.client, f"load{self._loads}", random.Random(self._luck.random()))
        await load.open()
        over = asyncio.Event()
        work = asyncio.create_task(load.work(over))
        try:
            for _ in range(times):
                await self.kill_at(step)
        finally:
            over.set()
            async with asyncio.timeout(PATIENCE_S):
                await work
        await load.settle(settle_s)
        await load.check()
        await self.at_rest()
        await load.check()
        return load

    async def at_rest(self) -> None:
        """Wait until no host has anything in hand: then nothing can be doubled any more."""
        counts: dict[int, dict[str, int]] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not counts or any(any(each.values()) for each in counts.values()):
                    await asyncio.sleep(0.005)
                    counts = {host.incarnation: await host.counts() for host in self.hosts}
                    self._bury()
        except TimeoutError:
            raise Violation(f"all is done, and these hosts do not think so: {counts}") from None


@contextlib.asynccontextmanager
async def failpoint_cluster(
    host_forker: str, folder: Path, luck: random.Random, mutation: str = "", store: str | None = None
) -> AsyncIterator[FailpointCluster]:
    """`mutation`: a rule that all hosts leave out, by its name in failpoint_host.py. `store`: the URL of an empty one;
    without it, SQLite in the folder."""
    cluster = FailpointCluster(host_forker, folder, luck, mutation, store or f"sqlite:{folder / 'store'}")
    world, network = SystemWorld(), TcpNetwork()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(cluster.store.close)
        await cluster.store.open(app.name, cluster.settings.shards)
        stack.push_async_callback(cluster.stop)
        await asyncio.gather(*(cluster.start_host() for _ in range(2)))
        coordination = Coordination(
            app.name,
            store=cluster.store,
            settings=cluster.settings,
            world=world,
            network=network,
            token=cluster.token,
            hosts_wanted=2,
        )
        coordinator = world.spawn(coordination.run(), "coordinator")
        stack.callback(coordinator.cancel)
        await cluster.owners()
        await cluster.start_host()
        cluster.client = await stack.enter_async_context(
            connected(
                app.name,
                await cluster.addresses(),
                token=cluster.token,
                settings=cluster.settings,
                world=world,
                network=network,
                discover=cluster.addresses,
            )
        )
        await cluster.client.client.table_complete()
        yield cluster
