"""SQL runs on threads of its own: from any event loop, never on it, and never in a forked child."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw
import pytest
from store_process import until

from atoll.actors.errors import StoreUnavailable
from atoll.persistence.process import this_process
from atoll.persistence.sqlite import SQLiteStore

Open = Callable[[], Awaitable[SQLiteStore]]


async def test_two_loops_use_one_store_at_once(open_store: Open) -> None:
    """A lease is renewed from a loop on another thread while this one appends; each is answered on its own loop."""
    store = await open_store()
    host = await store.register_host("a:1", "n", this_process())
    renewed: list[bool] = []

    async def renew() -> None:
        renewed.extend([await store.renew(host) for _ in range(200)])

    thread = threading.Thread(target=lambda: asyncio.run(renew()))
    thread.start()
    for n in range(1, 201):
        await store.append(host, n, b"row %d" % n)
    await asyncio.to_thread(thread.join)
    assert renewed == [True] * 200
    assert [row.renewals for row in await store.hosts()] == [200]
    assert len(await store.read_log(host)) == 200


async def test_a_renewal_does_not_wait_behind_the_tables(folder: Path, open_store: Open) -> None:
    """PR18: leases live in a file of their own: with the tables locked for as long as one likes, they go on."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    connection = apsw.Connection(str(folder / "tables.db"))
    connection.execute("BEGIN IMMEDIATE")
    claim = asyncio.create_task(store.claim(host, [(0, 1)]))
    for _ in range(20):
        assert await store.renew(host)
    assert not claim.done()
    connection.execute("ROLLBACK")
    connection.close()
    assert await claim == []


async def test_a_loop_that_is_gone_takes_nothing_with_it(open_store: Open) -> None:
    """A loop closed while its call is under way: the call takes effect or not, and others are served."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)

    def leave() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(store.renew(host))
        loop.run_until_complete(asyncio.sleep(0))
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=leave)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert await store.renew(host)


async def test_a_cancelled_append_may_have_taken_effect_and_may_be_repeated(open_store: Open) -> None:
    """PR03: what became of it is unknown; the same content at the same n settles it."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    for n in range(1, 30):
        task = asyncio.create_task(store.append(host, n, b"row %d" % n))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.append(host, n, b"row %d" % n)
    assert [row.n for row in await store.read_log(host)] == list(range(1, 30))


async def test_a_closed_store_says_so(open_store: Open) -> None:
    store = await open_store()
    await store.close()
    with pytest.raises(RuntimeError, match="open"):
        await store.shards()
    await store.close()


async def test_calls_under_way_are_finished_by_close(open_store: Open) -> None:
    """What was handed in before the close is done before the files are let go."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    appending = [asyncio.create_task(store.append(host, n, b"x")) for n in range(1, 50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*appending)
    again = await open_store()
    assert len(await again.read_log(host)) == 49


_FORKED = """
import asyncio, os, sys
from atoll.persistence.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])
asyncio.run(store.open("bank", 4))
child = os.fork()
try:
    told = asyncio.run(store.register_host("a:1", "n", None))
    code = 0
except RuntimeError as error:
    told = error
    code = 7
sys.stdout.write(f"{told}\\n")  # in one piece: both of them write
if child == 0:
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
sys.exit(code)
"""


def test_a_forked_child_may_not_use_the_store(folder: Path) -> None:
    """Locks and connections do not survive a fork: the child is told, the parent goes on."""
    run = subprocess.run(
        [sys.executable, "-u", "-c", _FORKED, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "forked child" in run.stdout
    assert "spawn" in run.stdout
    assert "1\n" in run.stdout


async def test_a_full_disk_is_told_and_nothing_is_lost(open_store: Open) -> None:
    """J12, R02: no room for an append: `StoreUnavailable` says so; the same append succeeds when there is room again."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    await store.append(host, 1, b"one")
    await store._threads.own_logs.run(lambda logs: logs.log(host)._connection.pragma("max_page_count", 8))
    content = bytes(100_000)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="make room"):
            await store.append(host, 2, content)
    assert [row.n for row in await store.read_log(host)] == [1]
    await store._threads.own_logs.run(lambda logs: logs.log(host)._connection.pragma("max_page_count", 100_000))
    await store.append(host, 2, content)
    assert [row.content for row in await store.read_log(host)] == [b"one", content]


async def test_threads_end_with_their_store(open_store: Open) -> None:
    """A store opened and closed a hundred times leaves nothing running."""

    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("atoll-")]

    for _ in range(5):
        store = await open_store()
        assert len(ours()) >= 3
        await store.close()
    await asyncio.to_thread(until, lambda: ours() == [], f"still there: {ours()}")
