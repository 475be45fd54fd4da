"""A process that is stopped while it holds a lock must not keep its successors out (rule 18)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace
from store_process import SHARDS, StoreProcess, until

from atoll.actors.errors import Fenced, StoreUnavailable
from atoll.persistence import sqlite_file
from atoll.persistence.process import boot_id, end_process, start_time_s, this_process, wal_lock_holders
from atoll.persistence.spi import Assignment, ProcessIdentity, ShardState
from atoll.persistence.sqlite import SQLiteStore

Open = Callable[[], Awaitable[SQLiteStore]]


async def take_over(store: SQLiteStore, old: int) -> tuple[int, list[bytes]]:
    """What a successor does, in its order; returns the seal's n and the rows below it."""
    (row,) = [row for row in await store.hosts() if row.incarnation == old]
    assert await store.condemn(old, row.renewals)
    new = await store.register_host("b:1", "node", this_process())
    await store.assign([Assignment(shard, 1, new) for shard in range(SHARDS)])
    taken = await store.claim(new, [(shard, 2) for shard in range(SHARDS)])
    assert {row.owners for row in taken} == {(old, new)}
    n = await store.seal(old)
    return n, [row.content for row in await store.read_log(old)]


@pytest.mark.parametrize("file", ["log", "tables.db", "leases.db"])
async def test_a_writer_stopped_with_a_lock_is_taken_over(folder: Path, open_store: Open, file: str) -> None:
    """PR18, J06: its own log, the tables or the leases: whichever lock the stopped process holds, it is ended, its open
    transaction never happened, and condemnation, claim and seal go through."""
    store = await open_store()
    with StoreProcess(folder, "hold", file) as writer:
        old = writer.line()
        writer.stop()
        locked = folder / (f"logs/{old}.db" if file == "log" else file)
        assert wal_lock_holders(locked) == [writer.pid], "the fault did not bite"
        began = time.monotonic()
        n, rows = await take_over(store, old)
        took_s = time.monotonic() - began
        assert writer.wait() == -signal.SIGKILL
    assert (n, rows) == (3, [b"row 1", b"row 2"])
    assert took_s < 20.0, took_s
    assert {row.state for row in await store.shards()} == {ShardState.OWNED}
    assert {row.renewals for row in await store.hosts()} == {0}


async def test_a_lock_holder_that_runs_is_left_alone(folder: Path, open_store: Open, monkeypatch) -> None:
    """PR18: somebody who works with the file is waited for, and named when he takes too long; then the call is repeated."""
    monkeypatch.setattr(sqlite_file, "LOCK_WAIT_S", 0.6)
    store = await open_store()
    with StoreProcess(folder, "hold", "tables.db") as writer:
        old = writer.line()
        with pytest.raises(StoreUnavailable, match=f"held by process {writer.pid}.*repeat the same call"):
            await store.assign([Assignment(0, 1, old)])
        assert writer.is_alive()
        assert (await store.sessions()) == {}, "readers do not wait"
        writer.kill()
    assert await store.assign([Assignment(0, 1, old)]) == {0}


async def test_a_transaction_that_was_open_when_its_log_is_sealed(folder: Path, open_store: Open) -> None:
    """J06: a running writer that cannot be told from outside (another namespace, say) commits while the successor waits to
    seal: the seal then stands above that row, which is read. There is no third way."""
    store = await open_store()
    with StoreProcess(folder, "hold", "log") as writer:
        old = writer.line()
        other_boot = replace(this_process(), boot_id="not this one")
        sealing = asyncio.create_task(seal_as(store, old, other_boot))
        await asyncio.sleep(0)
        await asyncio.to_thread(until, store._threads.other_logs._jobs.empty, "the seal was not begun")
        assert not sealing.done()
        writer.tell()
        assert writer.line() == "committed"
        assert await sealing == 4
    assert [row.content for row in await store.read_log(old)] == [b"row 1", b"row 2", b"row 3"]
    for n in (3, 4, 5):
        with pytest.raises(Fenced):
            await store.append(old, n, b"late")


async def seal_as(store: SQLiteStore, incarnation: int, process: ProcessIdentity) -> int:
    """Seal with another idea of who the process is."""
    from atoll.persistence.sqlite_log import OtherLogs

    return await store._threads.other_logs.run(OtherLogs.seal, incarnation, process)


async def test_sealing_ends_the_process_even_when_it_holds_nothing(folder: Path, open_store: Open) -> None:
    """PR16, PR18: after the seal the old process is surely dead: killed by the successor itself."""
    store = await open_store()
    with StoreProcess(folder, "open") as writer:
        assert writer.line() == "ready"
        writer.tell()
        old = writer.line()
        assert await store.seal(old) == 2
        assert writer.wait() == -signal.SIGKILL
        assert await store.seal(old) == 2


# ---- exactly that process


def test_a_pid_that_is_used_again_is_not_killed() -> None:
    """PR18: the start time tells a process from its predecessor under the same pid; so does the boot."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        started = start_time_s(bystander.pid)
        assert started is not None
        for identity in (
            ProcessIdentity(boot_id(), bystander.pid, started - 5),
            ProcessIdentity("an earlier boot", bystander.pid, started),
        ):
            assert not end_process(identity)
        assert bystander.poll() is None
        assert end_process(ProcessIdentity(boot_id(), bystander.pid, started))
        assert bystander.wait() == -signal.SIGKILL
        assert not end_process(ProcessIdentity(boot_id(), bystander.pid, started)), "gone already"


def test_no_process_kills_itself() -> None:
    """Several hosts may live in one process, as in tests: sealing one of them is no reason to die."""
    assert not end_process(this_process())
    assert not end_process(None)


def test_a_process_is_the_same_one_however_often_it_is_asked() -> None:
    """An identity compares equal to itself over time, and its start lies in the past of this boot."""
    assert this_process() == this_process()
    assert 0 < this_process().started < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert this_process().pid == os.getpid()
    assert start_time_s(2**22 + 1) is None


async def test_a_start_time_by_the_wall_clock_is_refused(open_store: Open) -> None:
    """A process registered under a start time that the successor would not recognise could not be killed by it."""
    store = await open_store()
    with pytest.raises(ValueError, match="counts from boot"):
        await store.register_host("a:1", "n", replace(this_process(), started=1.7e9))


def test_lock_holders_are_seen_as_the_kernel_lists_them(tmp_path: Path) -> None:
    """The byte ranges that SQLite locks while it writes."""
    path = tmp_path / "x.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (a)")
    assert wal_lock_holders(path) == []
    connection.execute("BEGIN IMMEDIATE")
    assert wal_lock_holders(path) == [os.getpid()]
    connection.execute("COMMIT")
    assert wal_lock_holders(path) == []
    connection.close()
    assert wal_lock_holders(path) == []
