"""Processes of a running app are killed and stopped, on a real Ray cluster of three nodes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from typing import Any

import psutil
import pytest
from app_under_test import Burner, Ledger
from append_load import LEASE_S, SHARDS, SOON_S, UNNOTICED_S, AppendLoad
from running_app import RunningApp, stopped, until_gone

import atoll
from atoll.sharding.hashing import shard_of
from atoll.sharding.table import Route

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


def incarnations(found: dict[str, Any]) -> list[int]:
    return [host["incarnation"] for host in found["hosts"]]


async def test_a_host_killed_under_load_costs_its_entities_a_moment_and_the_others_nothing(
    running: RunningApp, seed: int
) -> None:
    """S03, M01: every acknowledged append stands at its index; entities of the dead host answer again without a wait for
    its lease, and those of other hosts all the time; a new incarnation takes the dead one's place."""
    await a_host_is_killed_under_load(running, seed, SOON_S, UNNOTICED_S)


@pytest.mark.soak
async def test_what_a_killed_host_costs_on_a_quiet_machine(running: RunningApp, seed: int) -> None:
    """S03: a second at most; 250 ms elsewhere."""
    await a_host_is_killed_under_load(running, seed, 1.0, 0.25)


async def a_host_is_killed_under_load(running: RunningApp, seed: int, touched_s: float, untouched_s: float) -> None:
    before = await asyncio.to_thread(running.whole)
    victim = before["hosts"][1]
    others = {host["incarnation"] for host in before["hosts"]} - {victim["incarnation"]}
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed) as load:
            await load.answered(1000)
            killed = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            await load.answered(1500)
        touched, untouched = load.slowest_s({victim["incarnation"]}, killed), load.slowest_s(others, killed)
        told = f"seed {seed}: slowest append {touched * 1000:.0f} ms, elsewhere {untouched * 1000:.0f} ms"
        assert touched < touched_s, told
        assert untouched < untouched_s, told
        await load.check(cluster)
    after = await asyncio.to_thread(running.whole)
    assert victim["incarnation"] not in incarnations(after)
    assert {host["node"] for host in after["hosts"]} == {host["node"] for host in before["hosts"]}


async def test_commands_whose_host_died_before_answering_have_one_effect_under_their_ids(
    running: RunningApp, seed: int
) -> None:
    """M02, M03: the client and the host are gone before the replies are; another client repeats every command under
    its ID, twice, and each has had one effect, at the index that every reply names."""
    before = await asyncio.to_thread(running.whole)
    victim = max(before["hosts"], key=lambda host: host["shards"])
    async with running.connected() as first:
        await first.client.table_complete()

        def served_by_victim(name: str) -> bool:
            route = first.client.route(shard_of(name, SHARDS))
            return route is not None and route.incarnation == victim["incarnation"]

        names = [name for n in range(200) if served_by_victim(name := f"once-{seed}-{n}")][:20]
        ids = {(name, n): atoll.new_command_id() for name in names for n in range(20)}
        answered: dict[tuple[str, int], int] = {}

        async def append(name: str, n: int) -> None:
            answered[name, n] = await first.entity(Ledger, name).append.using(command_id=ids[name, n])(f"value {n}")

        tasks = [asyncio.create_task(append(*key)) for key in ids]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        os.kill(victim["pid"], signal.SIGKILL)
        early = dict(answered)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 < len(early) < len(ids), "the kill came before or after everything"
    async with running.connected() as second:
        for _ in range(2):
            for (name, n), command_id in ids.items():
                ledger = second.entity(Ledger, name)
                answer = await ledger.append.using(command_id=command_id)(f"value {n}")
                assert answered.setdefault((name, n), answer) == answer
        for name in names:
            entries = await second.entity(Ledger, name).read()
            assert sorted(entries) == sorted(f"value {n}" for n in range(20))
            assert all(entries[answered[name, n]] == f"value {n}" for n in range(20))


async def test_a_client_with_a_stale_table_is_redirected(running: RunningApp, seed: int) -> None:
    """S10: told `Moved` by a host that does not own the shard, it sends the command to the owner, within its deadline."""
    async with running.connected() as cluster:
        client = cluster.client
        await client.table_complete()
        name = f"stale-{seed}"
        shard = shard_of(name, SHARDS)
        right = client.route(shard)
        assert right is not None
        wrong = next(route for _, _, *route in client.table.entries() if route[0] != right.incarnation)
        client.table._routes[shard] = Route(0, *wrong)
        assert await cluster.entity(Ledger, name).append.using(timeout=5.0)("redirected") == 0
        assert client.route(shard) == right


async def test_clients_start_and_commands_run_while_the_coordinator_is_down(running: RunningApp, seed: int) -> None:
    """S10: with a coordinator that answers nothing, a client inside Ray and one over tcp, from any one host, still
    connect and work; `atoll status` says what is the matter."""
    before = await asyncio.to_thread(running.whole)
    with stopped(running.coordinator()):
        for host in before["hosts"]:
            async with atoll.connect(f"tcp://{host['address']}", token_file=host["token_file"]) as cluster:
                await cluster.entity(Ledger, f"down-{seed}").append(host["address"])
        found = await asyncio.to_thread(running.driver, f"down-{seed}", "inside Ray")
        assert found["indexes"] == [3, 4]
        run = await asyncio.to_thread(running.cli.run, "status", running.name)
        assert run.returncode == 1
        assert "the coordinator does not answer" in run.stderr
    assert (await asyncio.to_thread(running.whole))["hosts"] != []


async def test_a_coordinator_that_was_killed_comes_back_and_does_its_work(running: RunningApp, seed: int) -> None:
    """S10: no command fails or waits while Ray makes a new one; a host that is killed afterwards is failed over."""
    before = await asyncio.to_thread(running.whole)
    coordinator = await asyncio.to_thread(running.coordinator)
    everybody = set(incarnations(before))
    async with running.connected() as cluster:
        async with AppendLoad(cluster, seed, workers=8) as load:
            await load.answered(200)
            killed = time.monotonic()
            coordinator.kill()
            await load.answered(300)
            assert load.slowest_s(everybody, killed) < UNNOTICED_S
            again = await asyncio.to_thread(running.whole)
            assert incarnations(again) == incarnations(before), "the new coordinator leaves alone what works"
            assert running.coordinator().pid != coordinator.pid
            os.kill(again["hosts"][0]["pid"], signal.SIGKILL)
            await load.answered(500)
        assert load.slowest_s(everybody, killed) < SOON_S
        await load.check(cluster)
    await asyncio.to_thread(running.whole)


async def test_a_host_that_stands_still_beyond_its_lease_is_replaced(running: RunningApp, seed: int) -> None:
    """S05, S09: its shards answer elsewhere soon after its lease; it never answers again (on SQLite its
    process is killed before its log is taken over); a new incarnation takes its place."""
    before = await asyncio.to_thread(running.whole)
    victim = max(before["hosts"], key=lambda host: host["shards"])
    async with running.connected() as cluster:
        await cluster.client.table_complete()
        name = next(
            name
            for n in range(1000)
            if (route := cluster.client.route(shard_of(name := f"still-{seed}-{n}", SHARDS))) is not None
            and route.incarnation == victim["incarnation"]
        )
        ledger = cluster.entity(Ledger, name)
        await ledger.append("before")
        with stopped(psutil.Process(victim["pid"])):
            began = time.monotonic()
            assert await ledger.append("meanwhile") == 1
            assert time.monotonic() - began < 3 * LEASE_S
            assert await ledger.read() == ["before", "meanwhile"]
        until_gone([victim["pid"]])
        assert await ledger.append("after") == 2
    after = await asyncio.to_thread(running.whole)
    assert victim["incarnation"] not in incarnations(after)


async def test_a_handler_that_burns_cpu_delays_its_host_and_does_not_cost_it_its_shards(
    running: RunningApp, seed: int
) -> None:
    """The lease is renewed on a thread of its own: for two leases without the event loop it is still valid, and
    nobody took over."""
    before = await asyncio.to_thread(running.whole)
    async with running.connected() as cluster:
        burning = asyncio.create_task(cluster.entity(Burner, f"burner-{seed}").burn.using(timeout=60.0)(2 * LEASE_S))
        over_a_lease = time.monotonic() + LEASE_S + 0.5
        while time.monotonic() < over_a_lease:
            meanwhile = await asyncio.to_thread(running.status)
            assert all(host["lease_valid"] for host in meanwhile["hosts"])
        assert not burning.done(), "the looks came too late"
        assert await burning in {host["pid"] for host in before["hosts"]}
    # of its shards some may be moved since: it is busier than the others
    after = await asyncio.to_thread(running.whole)
    assert [host["incarnation"] for host in after["hosts"]] == [host["incarnation"] for host in before["hosts"]]


async def test_stopping_works_without_a_coordinator_that_answers(running: RunningApp) -> None:
    """`atoll stop` ends everything, gives the shards back, and the app can be started again."""
    hosts = (await asyncio.to_thread(running.whole))["hosts"]
    coordinator = running.coordinator()
    with stopped(coordinator):
        run = await asyncio.to_thread(running.cli.run, "stop", running.name)
        assert (run.returncode, run.stdout) == (0, "under-test is stopped\n"), run.stderr
    until_gone([coordinator.pid, *(host["pid"] for host in hosts)])
    started = await asyncio.to_thread(running.cli.start)
    assert started["served"] == started["shards"]
    shares = [host["shards"] for host in started["hosts"]]
    assert max(shares) - min(shares) <= 1, "a start gives every host its share, also on a used store"
