"""The client's own window: bounded, and shared fairly between shards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ledger import List
from sim_cluster import SETTINGS, SimCluster
from simulator.simulation import Simulation

import atoll
from atoll.sharding.hashing import shard_of

APP = atoll.App("window", entities=[List], settings={**SETTINGS, "shards": 8, "window_commands": 4})


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
            assert client.client._unanswered <= 4
            assert len(client.client._blocked) <= 8
            return index

        hot = [asyncio.ensure_future(append("hot", number)) for number in range(100)]
        await asyncio.sleep(0)
        elsewhere = [id for id in map(str, range(20)) if shard_of(id, 8) != shard_of("hot", 8)][:10]
        cold = [asyncio.ensure_future(append(id, 0)) for id in elsewhere]
        assert await asyncio.gather(*hot) == list(range(100))
        assert await asyncio.gather(*cold) == [0] * 10
        assert max(answered.index(id) for id in elsewhere) < 60
        assert not client.client._blocked
        assert client.client._unanswered == client.client._unanswered_bytes == 0

    play(story)


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
