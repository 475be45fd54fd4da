"""Asks that handlers make: exactly once with the command that makes them, and never in a circle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scenario import Scenario
from scenario import play as scenario
from sim_cluster import SETTINGS, SimCluster
from simulator.simulation import Simulation

import atoll
from atoll.sharding.hashing import shard_of


class Purse(atoll.Entity):
    """Money that handlers of other purses ask for."""

    coins: int = 100
    runs: int = 0

    @atoll.command
    def give(self, coins: int) -> int:
        if coins > self.coins:
            raise atoll.Rejected("not enough")
        self.coins -= coins
        self.runs += 1
        return self.coins

    @atoll.command
    async def take_from(self, other: str, coins: int, then_wait_s: float = 0.0) -> int:
        """Ask another purse, then wait, so that a kill finds the ask answered and this command unfinished."""
        await self.context.entity(Purse, other).give(coins)
        await asyncio.sleep(then_wait_s)
        self.coins += coins
        return self.coins

    @atoll.command
    async def wait_and_take_from(self, other: str, coins: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        await self.context.entity(Purse, other).give(coins)
        self.coins += coins
        return self.coins

    @atoll.command
    async def take_twice_at_once(self, other: str) -> list[int]:
        giver = self.context.entity(Purse, other)
        left = await asyncio.gather(giver.give(1), giver.give(2))
        self.coins += 3
        return list(left)

    @atoll.command
    async def visit(self, way: list[str]) -> int:
        """Go on to the first of the way, with the rest of it."""
        if way:
            await self.context.entity(Purse, way[0]).visit(way[1:])
        return self.coins

    @atoll.query
    async def peek(self, other: str) -> int:
        return await self.context.entity(Purse, other).look()

    @atoll.query
    async def query_that_writes(self, other: str) -> int:
        return await self.context.entity(Purse, other).give(1)

    @atoll.query
    def look(self) -> int:
        return self.coins

    @atoll.query
    def times(self) -> int:
        return self.runs


APP = atoll.App("purses", entities=[Purse], settings={**SETTINGS, "shards": 8})


def play(story: Any, seed: int | str = 0) -> Any:
    with Simulation(seed) as simulation:
        return simulation.run(story(SimCluster(simulation, faults=0.0, app=APP)))


async def two_hosts(cluster: SimCluster) -> Any:
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=2)
    await cluster.start_host()
    await cluster.start_host()
    return await cluster.client("X")


def test_a_handler_asks_another_entity_and_keeps_its_turn() -> None:
    """M17: the ask is answered from committed state, and both effects stand."""

    async def story(cluster: SimCluster) -> None:
        client = await two_hosts(cluster)
        for number in range(8):
            purse = client.entity(Purse, f"p{number}")
            assert await purse.take_from("rich", 5) == 105
            assert await purse.peek("rich") == 100 - 5 * (number + 1)
        assert sorted(await client.entity(Purse, "q").take_twice_at_once("rich")) in ([57, 58], [57, 59])
        with pytest.raises(atoll.Rejected, match="not enough"):
            await client.entity(Purse, "p0").take_from("rich", 1000)
        assert await client.entity(Purse, "p0").look() == 105

    play(story)


def test_a_query_may_ask_but_not_write() -> None:
    """A query never writes, not even through others."""

    async def story(cluster: SimCluster) -> None:
        client = await two_hosts(cluster)
        with pytest.raises(atoll.HandlerFailed, match="only a command writes"):
            await client.entity(Purse, "a").query_that_writes("b")
        assert await client.entity(Purse, "b").look() == 100

    play(story)


@pytest.mark.parametrize("seed", range(6))
def test_a_handler_that_runs_again_after_a_crash_gets_the_recorded_answer(seed: int) -> None:
    """M17, PR25: the asker's host is killed after the ask took effect and before its own commit; the command runs again
    at the next owner, and the other purse gave once."""

    async def story(cluster: SimCluster) -> None:
        client = await two_hosts(cluster)
        rich, poor = client.entity(Purse, "rich"), client.entity(Purse, "poor")
        await asyncio.gather(rich.look(), poor.look())
        taking = asyncio.ensure_future(poor.take_from("rich", 30, 2.0))
        while await rich.times() == 0:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)
        owner = client.client.route(_shard("poor"))
        cluster.hosts[owner.incarnation].kill()
        assert await taking == 130
        assert (await rich.look(), await rich.times(), await poor.look()) == (70, 1, 130)

    play(story, seed)


def _shard(id: str) -> int:
    return shard_of(id, 8)


@pytest.mark.parametrize("way", [["a"], ["b", "a"], ["b", "c", "d", "b"]])
def test_a_circle_of_asks_fails_at_once_and_leaves_all_usable(way: list[str]) -> None:
    """M11: the ask that closes the circle raises `CallCycle` within a round trip, not at the deadline (where no handler
    catches it, they have failed); every entity of the circle goes on."""

    async def story(cluster: SimCluster) -> None:
        client = await two_hosts(cluster)
        purse = client.entity(Purse, "a")
        await asyncio.gather(*(client.entity(Purse, id).look() for id in "abcd"))
        began = asyncio.get_running_loop().time()
        with pytest.raises(atoll.HandlerFailed, match="CallCycle: it would wait for itself"):
            await purse.visit(way)
        assert asyncio.get_running_loop().time() - began < 0.5
        assert await asyncio.gather(*(client.entity(Purse, id).visit([]) for id in "abcd")) == [100] * 4

    play(story)


def test_a_release_lets_in_what_its_running_turns_wait_for() -> None:
    """PR13: a handoff waits for a turn that asks another entity of the same shard; that ask is admitted, the others wait
    for the new owner, and the release is done."""

    async def story(cluster: SimCluster) -> None:
        client = await two_hosts(cluster)
        asker, asked, stranger = [f"s{n}" for n in range(200) if _shard(f"s{n}") == 3][:3]
        await asyncio.gather(*(client.entity(Purse, id).look() for id in (asker, asked, stranger)))
        taking = asyncio.ensure_future(client.entity(Purse, asker).wait_and_take_from(asked, 5, 0.5))
        await asyncio.sleep(0.1)
        host = cluster.running[client.client.route(3).incarnation].host
        releasing = asyncio.ensure_future(host.ownership.release(3))
        await asyncio.sleep(0.1)
        visiting = asyncio.ensure_future(client.entity(Purse, stranger).visit([]))
        began = asyncio.get_running_loop().time()
        assert await releasing
        assert asyncio.get_running_loop().time() - began < 1.0
        assert (await taking, await visiting) == (105, 100)
        assert await client.entity(Purse, asked).look() == 95

    play(story)


def test_an_ask_leaves_only_when_what_its_asker_did_before_is_durable() -> None:
    """M17, PR25: else the other entity would act on work that a crash takes back."""

    async def script(s: Scenario) -> None:
        poor, rich = "poor", next(f"r{n}" for n in range(99) if shard_of(f"r{n}", 2) != shard_of("poor", 2))
        asker, asked = await s.host(shard_of(poor, 2)), await s.host(shard_of(rich, 2))
        client = await s.client("X")
        held = s.store_of(asker).hold_reply("append")
        giving = asyncio.ensure_future(client.entity(Purse, poor).give(1))
        await held.reached()
        taking = asyncio.ensure_future(client.entity(Purse, poor).take_from(rich, 5))
        await asyncio.sleep(1)
        assert await client.entity(Purse, rich).times() == 0
        assert "append" not in s.store_of(asked).names()
        held.let_go()
        assert (await giving, await taking) == (99, 104)
        assert await client.entity(Purse, rich).times() == 1

    scenario(script, Purse, shards=2)


def test_asks_outside_a_turn_and_in_a_test_of_one_entity_say_so() -> None:
    """Where there is nobody to ask, the error says so, and nothing is kept."""

    async def alone() -> None:
        kit = atoll.testing.EntityKit(Purse, "a")
        with pytest.raises(atoll.HandlerFailed, match="nobody to ask"):
            await kit.ref.take_from("b", 1)
        assert kit.state == {"coins": 100, "runs": 0}

    asyncio.run(alone())
