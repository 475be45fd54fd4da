"""An app whose shards are striped over two PostgreSQL databases, on a real Ray cluster: a database away, a node killed,
stopped and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from app_under_test import Ledger
from append_load import AppendLoad
from command_line import APPS, CommandLine
from luck import Luck
from postgres_server import PostgresServer
from running_app import RunningApp
from three_nodes import RayNodes

import atoll
from atoll.sharding.hashing import shard_of

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.timeout(600)]

APP = "under-test"
DATABASES = ["first", "second"]


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    with RayNodes.start(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer.start() as server:
        for name in DATABASES:
            server.create_database(name)
        yield server


def named(urls: list[str]) -> list[str]:
    return [part for url in urls for part in ("--store", url)]


CODE = """
import atoll

class Ledger(atoll.Entity):
    entries: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, value: str) -> int:
        self.entries.append(value)
        return len(self.entries) - 1

app = atoll.App("two-folders", entities=[Ledger], version="{version}", store=["sqlite:./one", "sqlite:./two"])
"""


async def test_an_upgrade_and_a_drain_reach_the_hosts_of_every_database(ray_nodes: RayNodes, cli: CommandLine) -> None:
    """S07, S17: a drained node is empty when the hosts of both have given everything away; an upgrade is done when no host
    of either runs the old version, and every entity goes on."""
    running = RunningApp(ray_nodes, cli, "two-folders")

    def start(version: str) -> dict[str, Any]:
        folder = cli.folder / f"code-{version}"
        folder.mkdir()
        (folder / "two_folders.py").write_text(CODE.format(version=version))
        found: dict[str, Any] = cli.asked("start", "two_folders:app", "--app-dir", str(folder), "--ship")
        return found

    started = await asyncio.to_thread(start, "1")
    assert len(started["hosts"]) == 4
    async with running.connected(hosts=4) as cluster:
        names = [f"name-{number}" for number in range(40)]
        assert await asyncio.gather(*(cluster.entity(Ledger, name).append("1") for name in names)) == [0] * 40
        await _drained(ray_nodes.nodes[1].node_id, running, cli)
        upgraded = await asyncio.to_thread(start, "2")
        assert {(host["stripe"], host["version"]) for host in upgraded["hosts"]} == {(0, "2"), (1, "2")}
        assert upgraded["served"] == upgraded["shards"]
        assert await asyncio.gather(*(cluster.entity(Ledger, name).append("2") for name in names)) == [1] * 40
    stopped = await asyncio.to_thread(cli.run, "stop", "two-folders")
    assert stopped.stdout == "two-folders is stopped\n", stopped.stderr


async def _drained(node: str, running: RunningApp, cli: CommandLine) -> None:
    done = await asyncio.to_thread(cli.run, "drain", node)
    assert done.returncode == 0, done.stderr
    found = await asyncio.to_thread(running.status)
    assert {(host["shards"], host["state"]) for host in found["hosts"] if host["node"] == node} == {(0, "draining")}
    assert found["served"] == found["shards"]
    undone = await asyncio.to_thread(cli.run, "drain", node, "--undo")
    assert undone.returncode == 0, undone.stderr


async def test_an_app_lives_in_two_databases(ray_nodes: RayNodes, server: PostgresServer, cli: CommandLine) -> None:
    """S04, S15, R01: each node has a host for either database. While one database lets nobody in, entities of the other
    answer on, and status says so; a node that is killed costs no append; stopped and started again, every entity goes on
    where it stood. Named in another order, or only one of them, they are refused."""
    seed = Luck().first_seed
    migrated = await asyncio.to_thread(cli.run, "store", "migrate", *named([server.owner_url(d) for d in DATABASES]))
    assert migrated.stdout.count("is up to date") == 2, migrated.stderr
    app = ("start", "app_under_test:app", "--app-dir", str(APPS))
    urls = [server.url(name) for name in DATABASES]
    running = RunningApp(ray_nodes, cli)
    started = await asyncio.to_thread(cli.asked, *app, *named(urls))
    assert (started["stripes"], started["served"], started["shards"]) == (2, 256, 256)
    places = {(host["stripe"], host["node"]) for host in started["hosts"]}
    assert places == {(stripe, node.node_id) for stripe in (0, 1) for node in ray_nodes.nodes}
    assert "as number 1" in await asyncio.to_thread(cli.refused, *app, *named(urls[::-1]))
    assert "name all 2" in await asyncio.to_thread(cli.refused, *app, *named(urls[:1]))

    await _second_is_away(server, running)
    async with running.connected(hosts=4) as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(300)
            await asyncio.to_thread(ray_nodes.kill, 1)
            await load.answered(300)
            await asyncio.to_thread(running.whole, 2)
            await load.answered(300)
        await load.check(cluster)
    stopped = await asyncio.to_thread(cli.run, "stop", APP)
    assert stopped.stdout == f"{APP} is stopped\n", stopped.stderr

    await asyncio.to_thread(cli.asked, *app, *named(urls))
    async with running.connected(hosts=2) as cluster:
        await load.check(cluster)
    await asyncio.to_thread(cli.run, "stop", APP)


async def _second_is_away(server: PostgresServer, running: RunningApp) -> None:
    """It lets nobody in for a while; entities of the first answer meanwhile. Then all is as it was, with the same hosts."""
    before = await asyncio.to_thread(running.whole, 4)
    away = "ALTER DATABASE second ALLOW_CONNECTIONS {}"
    await asyncio.to_thread(server.execute, away.format("false"))
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'second'"
    await asyncio.to_thread(server.execute, ended)
    try:
        async with atoll.connect(before["url"], token_file=before["token_file"]) as cluster:
            names = (f"while-away-{n}" for n in range(1000))
            first = [name for name in names if shard_of(name, 256) % 2 == 0][:50]
            assert await asyncio.gather(*(cluster.entity(Ledger, name).append("x") for name in first)) == [0] * 50
            found = await asyncio.to_thread(running.until, lambda found: found["silent"] == [1])
            assert [host["state"] for host in found["hosts"] if host["stripe"] == 0] == ["live"] * 2
            shown = await asyncio.to_thread(running.cli.run, "status", APP)
            assert (shown.returncode, "number 2 does not answer" in shown.stderr) == (1, True), shown.stderr
    finally:
        await asyncio.to_thread(server.execute, away.format("true"))
    after = await asyncio.to_thread(running.whole, 4)
    hosts = [[(host["stripe"], host["incarnation"]) for host in found["hosts"]] for found in (before, after)]
    assert hosts[0] == hosts[1]
