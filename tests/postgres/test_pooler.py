"""Behind PgBouncer in transaction mode, where each transaction may be given another of the server's connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_of_messages import Load
from luck import Luck
from pgbouncer import BINARY, Pgbouncer
from postgres_databases import PostgresDatabases, opened
from promotion import DATABASE, Pair, patiently
from upkeep_app import two_hosts

from atoll.actors.errors import IncompatibleStore
from atoll.persistence.open import open_store
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.postgres_link import Life
from atoll.persistence.postgres_migrate import accept, migrate

pytestmark = pytest.mark.skipif(BINARY is None, reason="there is no pgbouncer here: apt-get install pgbouncer")

OTHERS = 12
"""Clients of the pooler at the same time: more than it has connections."""


@pytest.fixture(scope="module")
def pooler(postgres_databases: PostgresDatabases) -> Iterator[Pgbouncer]:
    with Pgbouncer.start(postgres_databases.server) as pooler:
        yield pooler


@pytest.fixture
def pooled(postgres_url: str, pooler: Pgbouncer) -> str:
    """The URL of an empty store behind the pooler."""
    return pooler.url(postgres_url.rpartition("/")[2])


async def test_many_share_few_connections(pooled: str) -> None:
    """J03, J06: stores that use the same connections in turn do not get in each other's way, neither with statements
    nor with locks; what was sealed stays so."""
    stores = await asyncio.gather(*(opened(pooled) for _ in range(OTHERS)))
    hosts = [await store.register_host(f"h:{n}", "n", None) for n, store in enumerate(stores)]

    async def work(store: PostgresStore, host: int) -> None:
        for n in range(1, 20):
            await asyncio.gather(store.append(host, n, b"row %d" % n), store.renew(host), store.shards())
            assert await store.read_entity(0, "Account", "nobody") is None

    await asyncio.gather(*(work(store, host) for store, host in zip(stores, hosts, strict=True)))
    for host in hosts:
        assert [row.n for row in await stores[0].read_log(host)] == list(range(1, 20))
    assert await stores[0].seal(hosts[1]) == await stores[1].seal(hosts[1]) == 20
    for store in stores:
        await store.close()


async def test_an_app_works_through_a_pooler_that_is_killed(pooled: str, pooler: Pgbouncer, tmp_path: Path) -> None:
    """R01, M05, M06, M07: its hosts wait for it, live on, and go on when it is back: nothing acknowledged is lost, doubled
    or out of order."""
    luck = Luck()
    async with two_hosts(tmp_path, pooled) as cluster, cluster.connect() as client:
        load = Load(client, "a", luck)
        await load.open()
        async with load.working():
            await load.more(20)
            pooler.kill()
            await asyncio.sleep(luck.uniform(0.1, 1.0))
            await asyncio.to_thread(pooler.restart)
            await load.more(20)
        await load.settle()
        await load.check()
        assert [host.alive for host in cluster.hosts] == [True, True], luck


async def test_each_transaction_behind_the_pooler_looks_which_life_it_is_in(pooled: str) -> None:
    """PR02, PR03: connections that are open stay so, and what they lead to is another server."""
    store = await opened(pooled)
    host = await store.register_host("a:1", "n", None)
    assert store._life is not None
    store._life = Life(store._life.system_identifier, 7)  # as if the server that it knows were another one
    for call in (store.append(host, 1, b"one"), store.renew(host), store.read_entity(0, "Account", "a"), store.hosts()):
        with pytest.raises(IncompatibleStore, match="timeline 7 was seen already"):
            await call
    await store.close()
    store = await opened(pooled)
    assert await store.read_log(host) == []
    await store.close()


@pytest.mark.soak
async def test_a_promotion_behind_the_pooler_is_noticed(pair: Pair) -> None:
    """PR02, PR03: its clients' connections stay open over it, and each transaction looks where it is: what was lost with
    the old primary is not written over."""
    with Pgbouncer.start(pair.primary) as pooler:
        store = await opened(pooler.url(DATABASE))
        host = await store.register_host("a:1", "n", None)
        await store.append(host, 1, b"one")
        await pair.hold_back()
        await asyncio.to_thread(pair.lose_the_primary)
        pooler.lead_to(pair.standby)
        with pytest.raises(IncompatibleStore, match="timeline 2"):
            await patiently(store, host, 2)
        await store.close()


async def test_a_pooler_that_the_url_does_not_name_is_refused(pooler: Pgbouncer, postgres_url: str) -> None:
    """R01: else a promotion behind it would go unnoticed; what to do stands in the message."""
    database = postgres_url.rpartition("/")[2]
    with pytest.raises(IncompatibleStore, match=r"add \?pooler=transaction"):
        await opened(pooler.url(database, options=""))
    with pytest.raises(ValueError, match="neither pooler=session nor pooler=transaction"):
        open_store(pooler.url(database, options="?pooler=maybe"))


async def test_in_session_mode_nothing_changes(postgres_databases: PostgresDatabases, postgres_url: str) -> None:
    """J03: a connection of ours is one of the server's."""
    with Pgbouncer.start(postgres_databases.server, "session") as pooler:
        store = await opened(pooler.url(postgres_url.rpartition("/")[2], "?pooler=session"))
        host = await store.register_host("a:1", "n", None)
        await store.append(host, 1, b"one")
        assert [row.content for row in await store.read_log(host)] == [b"one"]
        await store.close()


async def test_the_owner_works_through_a_pooler(pooler: Pgbouncer, pooled: str, postgres_url: str) -> None:
    """J13: migrating and accepting hold their lock in one transaction."""
    await (await opened(pooled)).close()
    url = pooler.url(postgres_url.rpartition("/")[2], role="atoll_owner")
    assert await asyncio.gather(*(migrate(url) for _ in range(4))) == [[]] * 4
    assert (await accept(url, synchronous=False)).timeline == 1


@pytest.mark.parametrize("options", ["", "?sslmode=disable&application_name=a%20b"])
async def test_the_other_options_stay_as_they_are(pooler: Pgbouncer, postgres_url: str, options: str) -> None:
    """J03: `pooler` is ours, all else is the driver's."""
    both = f"{options}&pooler=transaction" if options else "?pooler=transaction"
    await (await opened(pooler.url(postgres_url.rpartition("/")[2], both))).close()
