"""A standby that is promoted may lack the last commits: the store notices the new timeline, and refuses until told."""

from __future__ import annotations

import asyncpg
import pytest
from postgres_databases import PostgresDatabases, opened
from promotion import DATABASE, Pair, patiently

from atoll.actors.errors import CorruptRecord, IncompatibleStore
from atoll.persistence.postgres_migrate import accept
from atoll.persistence.spi import HostState


async def test_a_promotion_that_lost_commits_is_refused_by_who_ran_and_who_starts(pair: Pair) -> None:
    """PR02, PR03: positions and seals went back, so nobody writes there: neither a host that was running nor a new one."""
    store = await opened(pair.url)
    host = await store.register_host("a:1", "n", None)
    await store.append(host, 1, b"one")
    await pair.hold_back()
    await store.append(host, 2, b"acknowledged, and lost")
    pair.lose_the_primary()
    with pytest.raises(IncompatibleStore, match="timeline 2"):
        await patiently(store, host, 3)
    await store.close()
    with pytest.raises(IncompatibleStore, match="atoll store accept"):
        await opened(pair.url)


async def test_what_was_accepted_goes_on_with_new_numbers(pair: Pair) -> None:
    """After `atoll store accept` the store opens; hosts of the old life are condemned, no incarnation and no client comes
    twice."""
    store = await opened(pair.url)
    host, client = await store.register_host("a:1", "n", None), await store.open_session()
    await pair.hold_back()
    lost = await store.register_host("b:1", "n", None), await store.open_session()
    await store.close()
    pair.lose_the_primary()
    life = await accept(pair.owner_url, synchronous=False)
    assert life.timeline == 2
    store = await opened(pair.url)
    assert [(row.incarnation, row.state) for row in await store.hosts()] == [(host, HostState.GONE)]
    assert await store.register_host("c:1", "n", None) > lost[0] > host
    assert await store.open_session() > lost[1] > client
    await store.close()


async def test_where_promotions_lose_nothing_hosts_go_on_by_themselves(pair: Pair) -> None:
    """With `--synchronous` a running host survives the promotion; a log that did go back is found out all the same."""
    store = await opened(pair.url)
    await store.close()
    await accept(pair.primary.owner_url(DATABASE), synchronous=True)
    store = await opened(pair.url)
    host, other = await store.register_host("a:1", "n", None), await store.register_host("b:1", "n", None)
    await store.append(host, 1, b"one")
    await store.append(other, 1, b"one")
    await pair.hold_back()
    await store.append(other, 2, b"acknowledged, and lost")
    pair.lose_the_primary()
    await patiently(store, host, 2)
    assert [row.n for row in await store.read_log(host)] == [1, 2]
    with pytest.raises(CorruptRecord, match="went back in time"):
        await patiently(store, other, 3)
    await store.close()
    await (await opened(pair.url)).close()


async def test_a_copy_on_another_server_is_refused(postgres_databases: PostgresDatabases, postgres_url: str) -> None:
    """A dump that was restored elsewhere lacks what was committed since: refused like a promotion."""
    await (await opened(postgres_url)).close()
    database = postgres_url.rpartition("/")[2]
    connection = await asyncpg.connect(postgres_databases.server.admin_url(database))
    await connection.execute("UPDATE atoll.meta SET system_identifier = 1")  # as its copy would find it
    await connection.close()
    with pytest.raises(IncompatibleStore, match="copy on another server"):
        await opened(postgres_url)


async def test_saying_that_promotions_lose_nothing_disturbs_no_host(
    postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """Without a promotion `atoll store accept` condemns nobody and skips no number."""
    store = await opened(postgres_url)
    host = await store.register_host("a:1", "n", None)
    await accept(postgres_databases.server.owner_url(postgres_url.rpartition("/")[2]), synchronous=True)
    assert await store.renew(host)
    assert await store.register_host("b:1", "n", None) == host + 1
    await store.close()
