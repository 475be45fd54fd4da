"""What happens to connections: statements that take too long, calls that are cancelled, other loops, a server that pauses."""

from __future__ import annotations

import asyncio
import threading
import time

import asyncpg
import pytest
from postgres_databases import PostgresDatabases, opened

from atoll.actors.errors import StoreUnavailable
from atoll.persistence import postgres_link
from atoll.persistence.postgres_link import Lane, Link

SLOW_UPDATE = """
WITH waited AS (SELECT pg_sleep(1)) UPDATE counters SET value = value + 1 FROM waited WHERE name = 'client'
"""


async def until_counted(url: str) -> None:
    """Until the slow update took effect; it never does when somebody cancelled it."""
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(60):
        while await connection.fetchval("SELECT value FROM counters WHERE name = 'client'") == 0:  # noqa: ASYNC110  another session's doing
            await asyncio.sleep(0.02)
    await connection.close()


async def test_a_statement_that_takes_too_long_is_left_alone(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PR03: its outcome is unknown, and it is not cancelled: a cancelled wait for a standby would be half a commit. The
    connection is not used again."""
    monkeypatch.setattr(postgres_link, "COMMAND_TIMEOUT_S", 0.2)
    link = Link(postgres_url, lambda _life: None)
    with pytest.raises(StoreUnavailable, match="no answer"):
        async with link.lent(Lane.APPEND) as connection:
            await connection.execute(SLOW_UPDATE)
    async with link.lent(Lane.APPEND) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await until_counted(postgres_url)
    await link.close()


async def test_a_call_that_is_cancelled_cancels_nothing_on_the_server(postgres_url: str) -> None:
    """What was handed in may take effect, as a write whose caller died may; the next call has a fresh connection."""
    link = Link(postgres_url, lambda _life: None)

    async def slow() -> None:
        async with link.lent(Lane.APPEND) as connection:
            await connection.execute(SLOW_UPDATE)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await slow()
    async with link.lent(Lane.APPEND) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await until_counted(postgres_url)
    await link.close()


async def test_a_lease_is_renewed_from_a_loop_of_its_own(postgres_url: str) -> None:
    """A host's lease thread uses the same store on another loop, while the first one is busy."""
    store = await opened(postgres_url)
    host = await store.register_host("a:1", "n", None)
    renewed: list[bool] = []

    async def renew() -> None:
        renewed.extend([await store.renew(host) for _ in range(3)])

    thread = threading.Thread(target=lambda: asyncio.run(renew()))
    thread.start()
    thread.join(timeout=60)  # this loop is busy meanwhile
    assert renewed == [True, True, True]
    assert [row.renewals for row in await store.hosts()] == [3]
    await store.close()


async def test_a_server_that_is_killed_and_started_again_is_found_again(
    postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """R01: calls say that they do not know, and succeed by themselves when it is back; nothing is lost or doubled."""
    store = await opened(postgres_url)
    host = await store.register_host("a:1", "n", None)
    await store.append(host, 1, b"one")
    postgres_databases.server.kill()
    for call in (store.append(host, 2, b"two"), store.hosts(), store.renew(host)):
        with pytest.raises(StoreUnavailable):
            await call
    await asyncio.to_thread(postgres_databases.server.restart)
    await store.append(host, 2, b"two")
    await store.append(host, 2, b"two")
    assert [row.content for row in await store.read_log(host)] == [b"one", b"two"]
    await store.close()


async def test_one_process_takes_a_bounded_number_of_connections(
    postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """Whatever is asked at once: ten at most on one loop, and none is left after the close."""
    store = await opened(postgres_url)
    host = await store.register_host("a:1", "n", None)
    admin = await asyncpg.connect(postgres_databases.server.admin_url())
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
    database = postgres_url.rpartition("/")[2]

    async def ask(n: int) -> None:
        await asyncio.gather(store.shards(), store.read_log(host), store.renew(host), store.claim(host, [(n % 4, 9)]))

    await asyncio.gather(*(ask(n) for n in range(50)), store.append(host, 1, b"one"))
    assert 5 <= await admin.fetchval(count, database) <= 10
    await store.close()
    give_up_at = time.monotonic() + 60
    while await admin.fetchval(count, database):
        assert time.monotonic() < give_up_at, "connections are left behind"
        await asyncio.sleep(0.02)
    await admin.close()
