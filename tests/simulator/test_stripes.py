"""An app whose shards are striped over two databases: each is a cluster of its own, and entities speak across."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sim_cluster import SETTINGS, SimCluster, start_coordinators
from simulator.simulation import Simulation

import atoll
from atoll.cluster.api import Cluster
from atoll.persistence.stripes import Stripe
from atoll.sharding.hashing import shard_of

TOKENS = 24


class Box(atoll.Entity):
    """Keeps what is put into it, in order; puts it into others, too."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def put(self, token: str) -> int:
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    async def put_here_and_there(self, token: str, other: str) -> list[int]:
        there = await self.context.entity(Box, other).put(token)
        self.items.append(token)
        return [len(self.items) - 1, there]

    @atoll.command
    def post(self, token: str, others: list[str]) -> None:
        for other in others:
            self.context.send(self.context.entity(Box, other).put, token)

    @atoll.query
    def content(self) -> list[str]:
        return self.items


APP = atoll.App("boxes", entities=[Box], settings={**SETTINGS, "shards": 6})


def box(stripe: int, name: str) -> str:
    """The ID of a box that lies in that stripe."""
    return next(id for n in range(99) if shard_of(id := f"{name}-{n}", 6) % 2 == stripe)


Story = Callable[[list[SimCluster]], Awaitable[None]]


def play(story: Story, seed: int, *, faults: float = 0.0) -> None:
    """Two stripes with two hosts each, and one coordinator process for both."""

    async def whole(clusters: list[SimCluster]) -> None:
        for cluster in clusters:
            await cluster.open()
        start_coordinators(clusters, hosts_wanted=2)
        for cluster in clusters:
            await cluster.start_host()
            await cluster.start_host()
        await story(clusters)

    with Simulation(seed) as simulation:
        clusters = [SimCluster(simulation, faults=faults, app=APP, stripe=Stripe(n, 2, "f")) for n in range(2)]
        simulation.run(whole(clusters))


def owner_of(cluster: SimCluster, client: Cluster, id: str) -> int:
    route = client.client.route(shard_of(id, 6))
    assert route is not None
    assert route.address in cluster.addresses()
    return route.incarnation


@pytest.mark.parametrize("seed", range(2))
def test_asks_and_messages_between_databases_across_a_kill(seed: int) -> None:
    """M07, M17, S03: asks of handlers and messages go both ways between the stripes; a host of each is killed while the
    store fails now and then. Every token stands once, in the order sent, wherever it was put."""

    async def story(clusters: list[SimCluster]) -> None:
        client = await clusters[0].client("X")
        pairs = [(box(mine, f"from{mine}"), box(1 - mine, f"to{1 - mine}")) for mine in (0, 1)]
        inboxes = [box(stripe, f"inbox{stripe}") for stripe in (0, 1)]

        async def work(source: str, target: str) -> None:
            sender = client.entity(Box, source)
            for number in range(TOKENS):
                token = f"{source}/{number}"
                wanted = [number, number]
                asked = sender.put_here_and_there.using(command_id=token, timeout=60)
                assert await asked(token, target) == wanted
                await sender.post.using(command_id=f"post {token}", timeout=60)(token, inboxes)

        working = [asyncio.ensure_future(work(*pair)) for pair in pairs]
        for cluster, (source, _) in zip(clusters, pairs, strict=True):
            await _until(client, source, TOKENS // 3 * (cluster.stripe.index + 1))
            cluster.hosts[owner_of(cluster, client, source)].kill()
            await cluster.start_host()
        await asyncio.gather(*working)
        for source, target in pairs:
            sent = [f"{source}/{number}" for number in range(TOKENS)]
            assert await client.entity(Box, source).content() == sent
            assert await client.entity(Box, target).content() == sent
        for inbox in inboxes:
            await _until(client, inbox, 2 * TOKENS)
            found = await client.entity(Box, inbox).content()
            for source, _ in pairs:
                assert [token for token in found if token.startswith(source)] == [
                    f"{source}/{number}" for number in range(TOKENS)
                ]

    play(story, seed, faults=0.01)


async def _until(client: Cluster, id: str, count: int) -> None:
    async with asyncio.timeout(60):
        while len(await client.entity(Box, id).content()) < count:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.01)


def test_a_database_that_is_away_costs_only_its_own_shards() -> None:
    """R01: entities of the other one answer as ever, also to a client that comes meanwhile; what is asked of the one that
    is away has a known fate, and messages to it wait. When it is back, no host was lost and everything arrives."""

    async def story(clusters: list[SimCluster]) -> None:
        first, second = clusters
        here, there = box(0, "here"), box(1, "there")
        client = await first.client("X")
        assert await client.entity(Box, there).put("before") == 0
        assert await client.entity(Box, here).put("before") == 0
        second.store_away(True)
        await asyncio.sleep(5)  # longer than a lease
        newcomer = await first.client("Y")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(20):
            assert await client.entity(Box, here).put(f"{number}") == 1 + 2 * number
            assert await newcomer.entity(Box, here).put(f"{number}") == 2 + 2 * number
        assert loop.time() - began < 1.0
        await client.entity(Box, here).post("meanwhile", [there])
        with pytest.raises((atoll.NotExecuted, atoll.OutcomeUnknown)):
            await client.entity(Box, there).put.using(timeout=2)("lost?")
        second.store_away(False)
        await _until(client, there, 2)
        content = await newcomer.entity(Box, there).content()
        assert content[0] == "before"
        assert content.count("meanwhile") == 1
        assert [len(cluster.addresses()) for cluster in clusters] == [2, 2]

    play(story, 0)


def test_a_client_that_knows_hosts_of_one_database_finds_those_of_the_others() -> None:
    """S10: a host tells where the other stripes' hosts are, also those that came later; one of another stripe at an old
    address is not taken for its own."""

    async def story(clusters: list[SimCluster]) -> None:
        first, second = clusters
        client = await first.client("X")  # it is given addresses of the first one's hosts only
        known = second.addresses()
        await asyncio.gather(*(client.entity(Box, box(1, f"b{n}")).put("a") for n in range(5)))
        await second.start_host()
        await second.start_host()
        await asyncio.sleep(1)
        for address, incarnation in zip(known, list(second.hosts), strict=False):
            assert address == second.running[incarnation].address
            second.hosts[incarnation].kill()
        await asyncio.sleep(1)
        latecomer = await first.client("Y")
        for each in (client, latecomer):
            await asyncio.gather(*(each.entity(Box, box(1, f"b{n}")).put("b") for n in range(5)))
        mixed: Sequence[str] = [*second.addresses(), *first.addresses()]
        first.addresses = lambda: list(mixed)  # type: ignore[method-assign]
        anybody = await first.client("Z")
        for stripe in (0, 1):
            await anybody.entity(Box, box(stripe, "c")).put("c")

    play(story, 0)
