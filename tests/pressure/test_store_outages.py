"""A store that stands still, is full, dies or crawls, under hosts that are real processes: who is told what meanwhile,
and how soon all is as before. (The same on virtual time, with the breaker's trials counted: test_outage_rules.py.)"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from ledger import History, Journal, List
from plain_cluster import PlainCluster, plain_cluster
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer
from pressure import Memory, until
from slow_disk import SlowDisk, slow_disk

from atoll.cluster.api import Cluster

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
CALLERS = 24
PAUSE_S = 0.005
PATIENCE_S = 2.0
LATE_S = 3.0
"""How much later than its deadline a caller may hear on a machine that is busy with other things."""
STUCK_S = 0.5
"""Without an answer for so long, the outage has bitten."""
BACK_S = 5.0
"""After the end of an outage all is as before."""
GROWN_MIB_MAX = 32
"""Of a host: each caller has one command under way, so nothing piles up."""
SHORT_S = 2.5
OVER_A_LEASE_S = 4.5
"""No lease can be renewed on a full disk, and yet no host may be condemned for it."""
LONG_S = 10.0
LOOK_S = 0.02

Outage = AbstractAsyncContextManager[None]
"""Begins with `async with`, and is over when that ends."""


class Callers:
    """Each sends one command after the other to an entity of its own."""

    def __init__(self, client: Cluster) -> None:
        self.history = History()
        self.slowest_s = 0.0
        self.tried = 0
        self._answered_at = [0.0] * CALLERS
        self._over = False
        self._client = client
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(CALLERS)]

    @property
    def answers(self) -> int:
        return len(self.history.acknowledged)

    @property
    def last_answer_s(self) -> float:
        """How long ago it was."""
        return time.monotonic() - max(self._answered_at)

    def all_answered_since(self, when: float) -> bool:
        return min(self._answered_at) > when

    def ref(self, number: int) -> List | Journal:
        return self._client.entity(List if number % 2 else Journal, f"e{number}")

    async def _work(self, number: int) -> None:
        tries = 0
        while not self._over:
            tries += 1
            answers, began = self.answers, time.monotonic()
            token = f"{number}.{tries}"
            await self.history.append(f"e{number}", self.ref(number), token, str(number), "append")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.tried += 1
            if token in self.history.acknowledged:
                self._answered_at[number] = time.monotonic()
            assert self.answers >= answers
            await asyncio.sleep(PAUSE_S)

    async def stop(self) -> None:
        """Everybody has heard of what was sent last."""
        self._over = True
        async with asyncio.timeout(PATIENCE_S + LATE_S):
            await asyncio.gather(*self._tasks)

    async def check(self) -> None:
        self.history.check({f"e{number}": await self.ref(number).read() for number in range(CALLERS)})


class Suffered(NamedTuple):
    history: History
    slowest_s: float
    """While the outage lasted: the callers' longest wait."""


async def suffer(cluster: PlainCluster, outage: Outage, seconds: float, *, bites: bool = True) -> Suffered:
    """Callers before, during and after an outage. `bites`: nothing is answered while it lasts."""
    (host,) = cluster.hosts
    async with cluster.connect() as client, Memory.of(host.process.pid) as memory:
        callers = Callers(client)
        await until(lambda: callers.answers > 20 * CALLERS, 30, lambda: "the callers do not get going")
        async with outage:
            await asyncio.sleep(LOOK_S)  # what was answered before it began is heard
            if bites:
                await until(lambda: callers.last_answer_s > STUCK_S, 30, lambda: "the outage did not bite")
            before, tried = callers.answers, callers.tried
            await asyncio.sleep(seconds)
            answered, heard = callers.answers - before, callers.tried - tried
        ended = time.monotonic()
        slowest_s = callers.slowest_s
        await until(lambda: callers.all_answered_since(ended), BACK_S, lambda: "normal service is not back")
        took_s = time.monotonic() - ended
        normal = callers.answers
        await until(lambda: callers.answers > normal + 20 * CALLERS, 30, lambda: "it is slower than before")
        await callers.stop()
        await callers.check()
    history = callers.history
    print(  # noqa: T201
        f"{answered} answers and {heard - answered} errors meanwhile, slowest {slowest_s:.2f} s, back after {took_s:.2f} s; "
        f"{len(history.acknowledged)} acknowledged, {len(history.without_effect)} did not run, "
        f"{len(history.unknown)} unknown; {memory.grown:.1f} MiB more"
    )
    assert host.alive
    assert slowest_s < cluster.settings.command_timeout_s + LATE_S, "somebody heard too late"
    if bites:
        assert answered == 0
        assert heard >= CALLERS * (seconds // (PATIENCE_S + cluster.settings.verdict_s)), "somebody heard nothing"
    else:
        assert answered > CALLERS
        assert heard == answered
    assert memory.grown < GROWN_MIB_MAX
    return Suffered(history, slowest_s)


def all_waited(suffered: Suffered, at_least_s: float) -> None:
    """And nobody was turned away."""
    assert suffered.slowest_s >= at_least_s, "the outage did not bite"
    assert not suffered.history.without_effect
    assert not suffered.history.unknown


# ---- SQLite


@contextlib.asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Another process holds the write lock of a database file."""
    script = (
        "import apsw, sys\n"
        "database = apsw.Connection(sys.argv[1])\n"
        "database.set_busy_timeout(10_000)\n"
        "database.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(file), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"locked\n"
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def sqlite(folder: Path) -> AbstractAsyncContextManager[PlainCluster]:
    return plain_cluster("ledger:app", "ledger", folder, app_dir=HELPERS, settings={"command_timeout_s": PATIENCE_S})


async def with_a_locked_log(folder: Path, seconds: float) -> None:
    async with sqlite(folder) as cluster:
        log = folder / "store" / "logs" / f"{cluster.hosts[0].incarnation}.db"
        await suffer(cluster, locked(log), seconds)


@pytest.mark.timeout(60)
async def test_a_log_that_stands_still(tmp_path: Path) -> None:
    """R01: callers wait until their deadlines and hear what became of their commands; memory is bounded; within five
    seconds all is as before, and what was acknowledged is there once and in order."""
    await with_a_locked_log(tmp_path, SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_a_log_that_stands_still_for_ten_seconds(tmp_path: Path) -> None:
    """R01: the same."""
    await with_a_locked_log(tmp_path, LONG_S)


async def with_locked_tables(folder: Path, seconds: float) -> None:
    async with sqlite(folder) as cluster:
        suffered = await suffer(cluster, locked(folder / "store" / "tables.db"), seconds, bites=False)
    all_waited(suffered, 0.0)


@pytest.mark.timeout(60)
async def test_tables_that_stand_still(tmp_path: Path) -> None:
    """R01: entities that are in memory do not notice; the log takes all that they do."""
    await with_locked_tables(tmp_path, SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_tables_that_stand_still_for_ten_seconds(tmp_path: Path) -> None:
    """R01: the same, over two checkpoints that cannot be written."""
    await with_locked_tables(tmp_path, LONG_S)


@pytest.fixture
def disk(tmp_path: Path) -> SlowDisk:
    disk = slow_disk(tmp_path)
    if disk is None:
        pytest.skip("this machine has no C compiler")
    return disk


@contextlib.asynccontextmanager
async def slow(disk: SlowDisk, fsync_s: float) -> AsyncIterator[None]:
    with disk.slow(fsync_s):
        yield


async def with_a_slow_disk(disk: SlowDisk, folder: Path, fsync_s: float, seconds: float) -> None:
    async with plain_cluster("ledger:app", "ledger", folder, app_dir=HELPERS, hosts=0) as cluster:
        await cluster.start_host(within=disk.within)
        suffered = await suffer(cluster, slow(disk, fsync_s), seconds, bites=False)
    all_waited(suffered, fsync_s)


@pytest.mark.timeout(60)
async def test_a_disk_whose_fsync_takes_two_seconds(disk: SlowDisk, tmp_path: Path) -> None:
    """R01: it is slow, and not stuck: everybody waits for it, one commit after the other, and nobody fails; the host keeps
    its lease and its shards, and within five seconds of the end all is as before."""
    await with_a_slow_disk(disk, tmp_path, 2.0, 3 * SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(90)
async def test_a_disk_whose_fsync_takes_two_seconds_for_half_a_minute(disk: SlowDisk, tmp_path: Path) -> None:
    """R01: the same, over checkpoints that take many of them."""
    await with_a_slow_disk(disk, tmp_path, 2.0, 3 * LONG_S)


DISK_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "atoll-test", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount no file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.asynccontextmanager
async def full(disk: Path) -> AsyncIterator[None]:
    """Somebody else fills the disk, and whatever room is left again and again."""
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    async def keep_full() -> None:
        while True:
            fill()
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(keep_full())
    try:
        yield
    finally:
        task.cancel()
        ballast.unlink()


async def with_a_full_disk(disk: Path, seconds: float) -> None:
    async with sqlite(disk) as cluster:
        await suffer(cluster, full(disk), seconds)


@pytest.mark.timeout(60)
async def test_a_disk_that_is_full(small_disk: Path) -> None:
    """R02, R01: nothing is acknowledged that is not there, nothing is damaged, everybody hears by the deadline; as soon
    as there is room it goes on. The host is not condemned for leases that nobody could renew."""
    await with_a_full_disk(small_disk, OVER_A_LEASE_S)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_a_disk_that_is_full_for_ten_seconds(small_disk: Path) -> None:
    """R02, R01: the same."""
    await with_a_full_disk(small_disk, LONG_S)


# ---- PostgreSQL


@pytest.fixture
def server(postgres_databases: PostgresDatabases) -> PostgresServer:
    return postgres_databases.server


@pytest.fixture
def database(postgres_url: str) -> str:
    return postgres_url.rpartition("/")[2]


def postgres(
    server: PostgresServer, database: str, folder: Path, patience_s: float = PATIENCE_S
) -> AbstractAsyncContextManager[PlainCluster]:
    return plain_cluster(
        "ledger:app",
        "ledger",
        folder,
        app_dir=HELPERS,
        settings={"command_timeout_s": patience_s},
        store=server.url(database),
    )


@contextlib.asynccontextmanager
async def paused(server: PostgresServer) -> AsyncIterator[None]:
    server.suspend()
    try:
        yield
    finally:
        server.resume()


@contextlib.asynccontextmanager
async def killed(server: PostgresServer) -> AsyncIterator[None]:
    await asyncio.to_thread(server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(server.restart)


@contextlib.asynccontextmanager
async def slow_to_commit(server: PostgresServer, database: str, seconds: float) -> AsyncIterator[None]:
    """Each append waits so long within its COMMIT, as for a slow disk."""
    await asyncio.to_thread(
        server.execute,
        f"""
        CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON atoll.log DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION public.wait();
        """,
        database,
    )
    try:
        yield
    finally:
        await asyncio.to_thread(server.execute, "DROP TRIGGER slow ON atoll.log; DROP FUNCTION public.wait", database)


@pytest.mark.timeout(60)
async def test_a_postgresql_that_stands_still(server: PostgresServer, database: str, tmp_path: Path) -> None:
    """R01: as a log that stands still. The host keeps its shards: nobody else could renew a lease either."""
    async with postgres(server, database, tmp_path) as cluster:
        await suffer(cluster, paused(server), SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_a_postgresql_that_stands_still_for_ten_seconds(
    server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """R01: the same, for three leases."""
    async with postgres(server, database, tmp_path) as cluster:
        await suffer(cluster, paused(server), LONG_S)


@pytest.mark.timeout(60)
async def test_a_postgresql_that_is_killed(server: PostgresServer, database: str, tmp_path: Path) -> None:
    """R01: it comes back by its own recovery, and the hosts by themselves."""
    async with postgres(server, database, tmp_path) as cluster:
        await suffer(cluster, killed(server), SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_a_postgresql_that_is_dead_for_ten_seconds(server: PostgresServer, database: str, tmp_path: Path) -> None:
    """R01: the same, for three leases."""
    async with postgres(server, database, tmp_path) as cluster:
        await suffer(cluster, killed(server), LONG_S)


async def with_slow_commits(
    server: PostgresServer, database: str, folder: Path, commit_s: float, seconds: float
) -> None:
    async with postgres(server, database, folder, patience_s=10.0) as cluster:
        suffered = await suffer(cluster, slow_to_commit(server, database, commit_s), seconds, bites=False)
    all_waited(suffered, commit_s)


@pytest.mark.timeout(60)
async def test_a_postgresql_whose_commits_take_half_a_second(
    server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """R01: it is slow, and not stuck: everybody waits for it and nobody fails."""
    await with_slow_commits(server, database, tmp_path, 0.5, SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(90)
async def test_a_postgresql_whose_commits_take_two_seconds(
    server: PostgresServer, database: str, tmp_path: Path
) -> None:
    """R01: the same."""
    await with_slow_commits(server, database, tmp_path, 2.0, LONG_S)
