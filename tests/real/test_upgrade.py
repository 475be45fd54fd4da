"""The code of an app is replaced while it serves, on a real Ray cluster of three nodes, each version shipped as a folder."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from append_load import AppendLoad
from command_line import CommandLine
from running_app import RunningApp, actor_processes
from three_nodes import RayNodes

import atoll

pytestmark = [pytest.mark.real, pytest.mark.timeout(250)]

CODE = """
import contextlib
import atoll

class Ledger(atoll.Entity):
    entries: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, value: str) -> int:
        self.entries.append(value)
        return len(self.entries) - 1

    @atoll.query
    def read(self) -> list[str]:
        return list(self.entries)

    @atoll.query
    def code(self) -> str:
        return "{version}"

@contextlib.asynccontextmanager
async def resources():
    {resources}
    yield

app = atoll.App("upgraded", entities=[Ledger], version="{version}", resources=resources, settings={settings})
"""


class Ledger(atoll.Entity):
    """What this process knows of the ledgers of the app."""

    @atoll.query
    def code(self) -> str:
        return "of this process"


class Versions:
    """The app in folders, one for each version, and `atoll start` of these."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli = cli

    def arguments(
        self, version: str, resources: str = "pass", settings: str = "{}", store: str = "store"
    ) -> tuple[str, ...]:
        folder = self.cli.folder / f"code-{version}"
        folder.mkdir(exist_ok=True)
        code = CODE.format(version=version, resources=resources, settings=settings)
        (folder / "ledgers.py").write_text(code)
        return ("start", "ledgers:app", "--app-dir", str(folder), "--ship", "--store", f"sqlite:./{store}")

    def start(self, version: str) -> Any:
        return self.cli.asked(*self.arguments(version))


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


@pytest.fixture(scope="module")
def versions(cli: CommandLine) -> Versions:
    return Versions(cli)


@pytest.fixture(scope="module")
def upgraded(ray_nodes: RayNodes, versions: Versions) -> Iterator[RunningApp]:
    """Version 1 of it is started; each test leaves it whole."""
    versions.start("1")
    with RunningApp(ray_nodes, versions.cli, "upgraded") as running:
        yield running
    versions.cli.run("stop", "upgraded")


def in_service(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(host["version"], host["state"]) for host in found["hosts"]}


async def test_code_is_replaced_host_by_host_and_no_command_notices(
    upgraded: RunningApp, versions: Versions, seed: int
) -> None:
    """S17: `atoll start` of another version returns when it serves everything on every node; old and new hosts serve
    together meanwhile; a client that writes all the time sees no error, and every append stands at its index."""
    before = await asyncio.to_thread(upgraded.whole)
    assert in_service(before) == {("1", "live")}
    async with upgraded.connected() as cluster:
        async with AppendLoad(cluster, seed, workers=8) as load:
            await load.answered(200)
            assert await cluster.entity(Ledger, f"ledger-{seed}-1").code() == "1"
            started = await asyncio.to_thread(versions.start, "2")
            await load.answered(200)
        old = set(incarnations(before))
        first_new = min(sent.began for sent in load.sent if sent.owner not in old)
        last_old = max(sent.began for sent in load.sent if sent.owner in old)
        assert first_new < last_old, f"seed {seed}: old and new hosts did not serve together"
        assert (started["version"], in_service(started)) == ("2", {("2", "live")})
        assert {host["node"] for host in started["hosts"]} == {host["node"] for host in before["hosts"]}
        assert started["served"] == started["shards"]
        assert await cluster.entity(Ledger, f"ledger-{seed}-1").code() == "2"
        await load.check(cluster)
    assert len(actor_processes(upgraded.nodes, "HostActor")) == 3


def incarnations(found: dict[str, Any]) -> list[int]:
    return [host["incarnation"] for host in found["hosts"]]


def test_what_cannot_replace_the_running_version_changes_nothing(upgraded: RunningApp, versions: Versions) -> None:
    """S16, S17: the same version again, another store, another lease: one line each, and the hosts are the same."""
    before = upgraded.whole()
    version = before["version"]
    refused = versions.cli.refused
    assert refused(*versions.arguments(version)).startswith("'upgraded' runs already")
    assert "name its store with --store" in refused(*versions.arguments("9", store="other"))
    assert "lease_s is 3.0 in the 'upgraded' that runs, and 7.0 here" in refused(
        *versions.arguments("9", settings="{'lease_s': 7.0}")
    )
    assert incarnations(upgraded.whole()) == incarnations(before)


async def test_a_version_that_does_not_start_leaves_the_old_one_serving(
    upgraded: RunningApp, versions: Versions, seed: int
) -> None:
    """S17: its hosts fail: exit code 1 and the reason in one line, no command failed, the old hosts are the same, and
    they are looked after as before: one that is killed is replaced by one with the old code."""
    before = await asyncio.to_thread(upgraded.whole)
    version = before["version"]
    async with upgraded.connected() as cluster:
        async with AppendLoad(cluster, seed, workers=8) as load:
            await load.answered(100)
            broken = versions.arguments("3", resources="raise RuntimeError('the pool is empty')")
            said = await asyncio.to_thread(versions.cli.refused, *broken)
            assert said.startswith(f"version '3' does not come up, version '{version}' serves on: the host on node ")
            assert "RuntimeError: the pool is empty" in said
            await load.answered(100)
        await load.check(cluster)
        after = await asyncio.to_thread(upgraded.whole)
        assert (incarnations(after), after["version"]) == (incarnations(before), version)
        actor_processes(upgraded.nodes, "HostActor")[0].kill()
        await asyncio.to_thread(upgraded.until, lambda found: incarnations(found) != incarnations(before))
        after = await asyncio.to_thread(upgraded.whole)
        assert in_service(after) == {(version, "live")}
        assert await cluster.entity(Ledger, "anybody").code() == version
    assert len(actor_processes(upgraded.nodes, "HostActor")) == 3, "a host that did not start was left behind"


async def test_an_upgrade_whose_command_line_is_killed_is_finished_by_the_next_one(
    upgraded: RunningApp, versions: Versions, seed: int
) -> None:
    """S17: SIGKILL at some moment of the way back to an older version: everything is served on; `atoll start` once more
    comes to the same end, and no command failed."""
    rng = random.Random(seed)
    before = await asyncio.to_thread(upgraded.whole)
    wanted = "1" if before["version"] == "2" else "2"
    async with upgraded.connected() as cluster:
        async with AppendLoad(cluster, seed, workers=8) as load:
            await load.answered(100)
            start = versions.cli.begin(*versions.arguments(wanted))
            await load.answered(rng.randrange(100, 1500))
            start.send_signal(signal.SIGKILL)
            await asyncio.to_thread(start.communicate, timeout=30)
            again = await asyncio.to_thread(versions.cli.run, *versions.arguments(wanted))
            told = f"seed {seed}: {again.stderr}"
            assert again.returncode == 0 or goes_on(again), told
            found = await asyncio.to_thread(upgraded.until, lambda found: in_service(found) == {(wanted, "live")}, 90)
            assert found["version"] == wanted, told
            await load.answered(100)
        await load.check(cluster)
    assert len((await asyncio.to_thread(upgraded.whole))["hosts"]) == 3


def goes_on(run: subprocess.CompletedProcess[str]) -> bool:
    """The one before had come far enough: its coordinator does the rest."""
    return run.returncode == 1 and "'upgraded' runs already" in run.stderr
