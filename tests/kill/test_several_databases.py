"""Real host processes over two PostgreSQL databases, one of them killed under a load of messages, asks and timers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_of_messages import Load
from luck import Luck
from plain_cluster import plain_cluster
from postgres_databases import PostgresDatabases
from upkeep_app import APP, SETTINGS

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture
def urls(postgres_databases: PostgresDatabases) -> Iterator[list[str]]:
    """Of two migrated databases."""
    with postgres_databases.fresh() as first, postgres_databases.fresh() as second:
        yield [postgres_databases.server.url(name) for name in (first, second)]


async def test_a_host_of_one_database_is_killed_and_every_message_arrives_once(urls: list[str], tmp_path: Path) -> None:
    """M06, M07, S03: money, talks, tells and timers whose parts lie in different databases; nothing is lost, doubled or
    out of order. A new host takes its place."""
    luck = Luck()
    async with (
        plain_cluster(
            "bank_of_messages:app", APP, tmp_path, app_dir=HELPERS, hosts=3, store=urls, settings=SETTINGS
        ) as cluster,
        cluster.connect() as client,
    ):
        load = Load(client, "X", luck)
        await load.open()
        async with load.working():
            await asyncio.sleep(0.5)
            victim = next(host for host in cluster.hosts if host.stripe == 0)
            owned = [row.shard for row in await cluster.stores[0].shards() if row.owner == victim.incarnation]
            assert owned, "the kill would not bite"
            victim.kill()
            await cluster.start_host(stripe=0)
            await asyncio.sleep(0.5)
        await load.settle(60)
        await load.check()
        for store, stripe in zip(cluster.stores, cluster.stripes, strict=True):
            rows = await store.shards()
            assert [row.shard for row in rows] == list(stripe.shards(SETTINGS["shards"]))
            assert any(row.position for row in rows), "nothing was ever written there"
