"""The client's own window: bounded, and shared fairly between shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import scenario as rules
from ledger import List
from scenario import Scenario, until
from sim_cluster import SETTINGS, SimCluster
from simulator.simulation import Simulation

import atoll
from atoll.sharding.hashing import shard_of
from atoll.sharding.host import Host

APP = atoll.App("window", entities=[List], settings={**SETTINGS, "shards": 8, "window_commands": 4})


class Clerk(atoll.Entity):
    notes: list[int] = atoll.field(default_factory=list)

    @atoll.command
    async def note(self, number: int, seconds: float = 0.0) -> int:
        if seconds:
            await asyncio.sleep(seconds)
        self.notes.append(number)
        return len(self.notes) - 1


def play(story: Callable[[SimCluster], Awaitable[None]]) -> None:
    with Simulation("window") as simulation:
        simulation.run(story(SimCluster(simulation, faults=0.0, app=APP)))  # type: ignore[arg-type] # a coroutine function


def test_a_full_window_serves_all_shards_in_turn_and_remembers_each_once() -> None:
    """M01, M14: four commands may be under way at once. A hundred to one entity do not starve one to another, all are
    answered in order, and what waits costs one entry per shard."""

    async def story(cluster: SimCluster) -> None:
        await cluster.open()
        cluster.start_coordinator()
        await cluster.start_host()
        client = await cluster.client("X")
        answered: list[str] = []

        async def append(id: str, number: int) -> int:
            index = await client.entity(List, id).append(str(number))
            answered.append(id)
            assert cluster.unanswered()[0] <= 4
            assert all(len(lanes) <= 8 for lanes in client.client._blocked.values())
            return index

        hot = [asyncio.ensure_future(append("hot", number)) for number in range(100)]
        await asyncio.sleep(0)
        elsewhere = [id for id in map(str, range(20)) if shard_of(id, 8) != shard_of("hot", 8)][:10]
        cold = [asyncio.ensure_future(append(id, 0)) for id in elsewhere]
        assert await asyncio.gather(*hot) == list(range(100))
        assert await asyncio.gather(*cold) == [0] * 10
        assert max(answered.index(id) for id in elsewhere) < 60
        assert not any(client.client._blocked.values())
        assert cluster.unanswered() == (0, 0)

    play(story)


def test_a_slow_entity_leaves_the_window_of_its_shard_to_the_others() -> None:
    """M14, M01: five hundred asks wait for an entity that takes a second for each. Everybody else of its shard goes on, a
    thousand commands a second and more; the slow ones stay in order, and none of them is lost."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("X")
        slow = cluster.entity(Clerk, "slow").note.using(timeout=900)
        waiting = [asyncio.ensure_future(slow(number, 1.0)) for number in range(500)]
        await asyncio.sleep(3)
        times: list[float] = []

        async def quick(worker: int) -> None:
            for number in range(100):
                began = asyncio.get_running_loop().time()
                assert await cluster.entity(Clerk, f"quick {worker}").note(number) == number
                times.append(asyncio.get_running_loop().time() - began)
                await asyncio.sleep(0.5)

        await asyncio.gather(*(quick(worker) for worker in range(50)))
        assert sorted(times)[-len(times) // 100] < 0.05
        assert await asyncio.gather(*waiting) == list(range(500))
        (lane,) = cluster.client._lanes.values()
        assert (len(lane.busy), lane.waits, s.unanswered()) == (0, False, (0, 0))

    rules.play(script, Clerk)


async def fill(s: Scenario, host: Host) -> None:
    """Another client's nine slow commands: one runs, and eight are all that the mailbox takes."""
    other = s.raw_client(99, host, kind=Clerk)
    for number in range(1, 10):
        other.call(number, "note", id="full", prev=number - 1, remaining_ms=900_000, number=-1, seconds=3.0)
        await until(lambda: host.shards[0].residents["Clerk", "full"].running is not None)
    assert len(host.shards[0].residents["Clerk", "full"].mailbox) == 8


def test_a_full_mailbox_holds_up_its_entity_only() -> None:
    """M14, M01: another client filled it. What this one sends there waits, in order, and is tried one at a time; to the
    others of that shard it speaks as if nothing were."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await fill(s, host)
        cluster = await s.client("X")
        waiting = [asyncio.ensure_future(cluster.entity(Clerk, "full").note.using(timeout=900)(n)) for n in range(20)]
        began = asyncio.get_running_loop().time()
        for number in range(500):
            assert await cluster.entity(Clerk, "quick").note(number) == number
        assert asyncio.get_running_loop().time() - began < 5
        assert not any(ask.done() for ask in waiting)
        (lane,) = cluster.client._lanes.values()
        assert list(lane.held) == [("Clerk", "full")]
        places = await asyncio.gather(*waiting)
        assert places == sorted(places)
        assert not lane.held
        assert s.unanswered() == (0, 0)

    rules.play(script, Clerk, mailbox_commands_max=8)


def test_a_deadline_passes_while_its_entity_is_held() -> None:
    """M12: who gives up in between holds nobody up, and did not run."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        await fill(s, host)
        cluster = await s.client("X")
        note = cluster.entity(Clerk, "full").note
        late = [asyncio.ensure_future(note.using(timeout=1.0)(n)) for n in range(20)]
        patient = asyncio.ensure_future(note.using(timeout=900)(100))
        ends = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(end, atoll.NotExecuted) for end in ends), ends
        assert await patient == 9

    rules.play(script, Clerk, mailbox_commands_max=8)


def test_what_a_closed_client_never_sent_did_not_run() -> None:
    """M12, M14: of four the outcome is unknown; those that waited for the window are not sent on the way out."""

    async def story(cluster: SimCluster) -> None:
        await cluster.open()
        cluster.start_coordinator()
        await cluster.start_host()
        client = await cluster.client("X")
        assert await client.entity(List, "e").append("first") == 0
        asks = [asyncio.ensure_future(client.entity(List, f"e{n}").append("x")) for n in range(100)]
        await asyncio.sleep(0)
        await client.client.close()
        ends = [type(end) for end in await asyncio.gather(*asks, return_exceptions=True)]
        assert (ends.count(atoll.OutcomeUnknown), ends.count(atoll.Unavailable)) == (4, 96)

    play(story)
