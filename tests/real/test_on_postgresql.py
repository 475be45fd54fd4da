"""An app on PostgreSQL, on a real Ray cluster: started, looked at, drained, stopped and started again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from append_load import AppendLoad
from command_line import APPS, CommandLine
from luck import Luck
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer
from running_app import RunningApp
from three_nodes import RayNodes

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]

APP = "under-test"
PASSWORD = "c0ral-reef"
"""The server asks for none."""


@pytest.fixture(scope="module")
def server(postgres_databases: PostgresDatabases) -> PostgresServer:
    """With an empty database."""
    postgres_databases.server.create_database(APP)
    return postgres_databases.server


def names(path: Path, word: str) -> bool:
    return word in path.read_text(errors="replace")


async def test_an_app_lives_on_postgresql(ray_nodes: RayNodes, server: PostgresServer, cli: CommandLine) -> None:
    """S07, S15: without its tables the start is refused and says how to make them; then it serves. A drain under load
    costs no append; after a stop and another start every entity goes on where it stood. The password of the URL is in
    no log and in nothing that is printed."""
    seed = Luck().first_seed
    store = server.url(APP).replace("@", f":{PASSWORD}@")
    start = ("start", "app_under_test:app", "--app-dir", str(APPS), "--store", store)
    refused = await asyncio.to_thread(cli.refused, *start)
    assert "atoll store migrate" in refused
    migrated = await asyncio.to_thread(cli.run, "store", "migrate", "--store", server.owner_url(APP))
    assert migrated.returncode == 0, migrated.stderr

    with RunningApp(ray_nodes, cli) as running:
        started = await asyncio.to_thread(cli.asked, *start)
        assert started["served"] == started["shards"] == 256
        async with running.connected() as cluster:
            async with AppendLoad(cluster, seed) as load:
                await load.answered(300)
                node = ray_nodes.nodes[1].node_id
                drained = await asyncio.to_thread(cli.run, "drain", node)
                assert drained.returncode == 0, drained.stderr
                found = await asyncio.to_thread(running.status)
                assert [host["shards"] for host in found["hosts"] if host["node"] == node] == [0]
                assert found["served"] == found["shards"]
                await load.answered(300)
            await load.check(cluster)
        shown = await asyncio.to_thread(cli.run, "status", APP)
        stopped = await asyncio.to_thread(cli.run, "stop", APP)
        assert stopped.stdout == f"{APP} is stopped\n", stopped.stderr

        started = await asyncio.to_thread(cli.asked, *start)
        assert started["served"] == started["shards"] == 256
        async with running.connected() as cluster:
            await load.check(cluster)
    assert PASSWORD not in refused + shown.stdout + shown.stderr + stopped.stdout
    logs = [path for path in ray_nodes.folder.glob("session_2*/logs/**/*") if path.is_file()]
    assert any(names(path, "atoll.host") for path in logs)
    assert not [path for path in logs if names(path, PASSWORD)]
