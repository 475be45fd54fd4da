"""A standby takes the place of the primary under an app that works: real hosts, messages, tells and timers on their way.

What the store itself does stands in tests/postgres/test_promotion.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest
from bank_of_messages import Load
from luck import Luck
from plain_cluster import HostDidNotStart, PlainCluster
from promotion import DATABASE, Pair
from upkeep_app import APP, two_hosts

from atoll.persistence.open import open_store
from atoll.persistence.postgres_migrate import accept

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

ENDS_WITHIN_S = 60.0
"""A connection to a lost server ends at once, one to a silent one after its time-outs."""


async def ended(cluster: PlainCluster) -> None:
    async with asyncio.timeout(ENDS_WITHIN_S):
        await asyncio.gather(*(host.process.wait() for host in cluster.hosts))


async def test_where_commits_were_lost_every_host_ends_and_none_starts(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PR02, PR03, S15: nobody answers from a state that went back; the reason says what to do, and after it was done the
    app goes on with what is there."""
    luck = Luck()
    async with two_hosts(tmp_path, pair.url) as cluster, cluster.connect() as client:
        load = Load(client, "a", luck)
        await load.open()
        working = asyncio.create_task(load.work(asyncio.Event()))
        await load.more(50)
        await pair.hold_back()
        await load.more(50)
        await asyncio.to_thread(pair.lose_the_primary)
        await ended(cluster)
        working.cancel()
        with pytest.raises(HostDidNotStart):
            await cluster.start_host()
    said = capfd.readouterr().err
    assert said.count("timeline 2") >= 3, said
    assert "atoll store accept" in said, said
    await accept(pair.owner_url, synchronous=False)
    async with two_hosts(tmp_path / "again", pair.url) as cluster, cluster.connect() as client:
        await Load(client, "b", luck).open()


async def test_with_synchronous_replication_the_app_goes_on_and_nothing_is_lost(pair: Pair, tmp_path: Path) -> None:
    """R01, M05, M06, M07: its hosts live on, and what was acknowledged before, meanwhile and after is there, once."""
    luck = Luck()
    connection = await asyncpg.connect(pair.primary.admin_url())
    await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await connection.execute("SELECT pg_reload_conf()")
    while await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 0:  # noqa: ASYNC110 - the server's doing
        await asyncio.sleep(0.01)
    await connection.close()
    store = open_store(pair.url)
    await store.open(APP, 8)
    await store.close()
    await accept(pair.primary.owner_url(DATABASE), synchronous=True)
    async with two_hosts(tmp_path, pair.url) as cluster, cluster.connect() as client:
        load = Load(client, "a", luck)
        await load.open()
        async with load.working():
            await load.more(100)
            await asyncio.to_thread(pair.lose_the_primary)
            await load.more(100)
        await load.settle()
        await load.check()
        assert [host.alive for host in cluster.hosts] == [True, True], luck
