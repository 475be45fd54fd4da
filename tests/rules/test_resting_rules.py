"""Entities at rest, and the bound on those in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scenario import Box, Ledger, Scenario, play, until

import atoll
from atoll.sharding.host import Host


class Jar(atoll.Entity, durable=False):
    """Nothing of it is stored: what rests is all there is."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def put(self, item: str) -> int:
        self.items.append(item)
        return len(self.items) - 1

    @atoll.query
    def read(self) -> list[str]:
        return self.items


class Noting(Box):
    """It keeps what is no state."""

    @atoll.query
    def noted(self, item: str) -> str:
        before, self._note = getattr(self, "_note", ""), item
        return before


class Holding(Box):
    """It holds what has to be given back."""

    async def on_activate(self) -> None:
        self._held = True

    async def on_passivate(self) -> None:
        self._held = False


async def at_rest(host: Host) -> None:
    """Wait until nobody in memory has an activation."""
    entities = host.entities
    await until(lambda: not host.shards[0].residents)
    assert host.entities == entities


class Caller:
    """Asks one entity, one command after the other."""

    def __init__(self, s: Scenario, host: Host, kind: type[atoll.Entity]) -> None:
        self._client = s.raw_client(7, host, kind=kind)
        self._number = 0

    async def ask(self, method: str, id: str = "a", **arguments: Any) -> Any:
        self._number += 1
        return await self._client.ask(self._number, method, id=id, floor=self._number, **arguments)


@pytest.mark.parametrize("kind", [Box, Ledger, Jar])
def test_an_idle_entity_is_made_again_without_the_store(kind: type[atoll.Entity]) -> None:
    """M13: from rest it goes on with the state, the version and the distance to its next snapshot that it had."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        caller = Caller(s, host, kind)
        for place in range(7):
            assert await caller.ask("put", item=str(place)) == place
            await at_rest(host)
        assert await caller.ask("read") == [str(place) for place in range(7)]
        assert s.store_of(host).names().count("read_entity") <= 1
        if kind is Ledger:
            records = await s.records(host)
            assert [record.seq for record in records if record.state is not None] == [3, 6]

    play(script, kind, rest_idle_s=0.1, snapshot_every=3)


@pytest.mark.parametrize("kind", [Box, Ledger])
def test_a_deleted_entity_rests_with_its_version(kind: type[atoll.Entity]) -> None:
    """M20: it begins from the defaults, and its version goes on."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        caller = Caller(s, host, kind)
        await caller.ask("put", item="old")
        await caller.ask("clear")
        await at_rest(host)
        assert await caller.ask("read") == []
        assert await caller.ask("put", item="new") == 0
        assert [record.seq for record in await s.records(host)] == [1, 2, 3]

    play(script, kind, rest_idle_s=0.1)


def test_a_turn_that_fails_after_a_rest_leaves_no_trace() -> None:
    """M09: what it is put back to is what it was made from."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        caller = Caller(s, host, Box)
        await caller.ask("put", item="kept")
        await at_rest(host)
        with pytest.raises(AssertionError):
            await caller.ask("put_and_fail", item="lost")
        assert await caller.ask("read") == ["kept"]

    play(script, rest_idle_s=0.1)


def test_who_holds_more_than_its_fields_does_not_rest() -> None:
    """M13: attributes of its own, and what a hook made, are there until it leaves memory."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        caller = Caller(s, host, Noting)
        assert await caller.ask("noted", item="x") == ""
        await asyncio.sleep(10)
        assert await caller.ask("noted", item="y") == "x"
        holding = s.raw_client(8, host, kind=Holding)
        await holding.ask(1, "put", id="h", item="x")
        activation = host.shards[0].residents["Holding", "h"].activation
        await asyncio.sleep(10)
        assert host.shards[0].residents["Holding", "h"].activation is activation
        await until(lambda: not host.entities)
        assert activation is not None
        assert not activation._entity._held

    play(script, Box, Noting, Holding, rest_idle_s=0.1, passivate_idle_s=20.0)


@pytest.mark.parametrize("settings", [{"rest_idle_s": 0.1}, {"passivate_idle_s": 0.1}, {"active_entities_max": 0}])
def test_who_is_not_durable_yet_is_kept(settings: dict[str, Any]) -> None:
    """PR10: until then its activation is the only place that has what it shows. Then it goes with the next look, above
    the bound at once."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host)
        held = s.store_of(host).hold("append")
        c.call(1, "put", item="x")
        await held.reached()
        await asyncio.sleep(5)
        (resident,) = host.shards[0].residents.values()
        assert resident.activation is not None
        held.let_go()
        assert (await c.answer(1))[1] == 0
        await until(lambda: not host.shards[0].residents, 0.0 if "active_entities_max" in settings else 2.0)
        assert await c.ask(2, "read") == ["x"]

    play(script, **settings)


def test_who_rests_for_long_leaves_memory() -> None:
    """M13: not before the idle time, and not an eighth and a look later than that."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        caller = Caller(s, host, Box)
        for number in range(20):
            await caller.ask("put", id=f"e{number}", item="x")
        await asyncio.sleep(79)
        assert host.entities == 20
        await asyncio.sleep(13)
        assert host.entities == 0
        assert await caller.ask("put", id="e1", item="y") == 1

    play(script, rest_idle_s=1.0, passivate_idle_s=80.0)


def test_entities_of_a_shard_that_moved_away_are_not_woken_here_again() -> None:
    """S09: when the shard comes back, each is read as its other owner left it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await Caller(s, a, Box).ask("put", item="here")
        await at_rest(a)
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        assert a.entities == 0
        await s.give(b, 0)
        await s.raw_client(8, b).ask(1, "put", item="there")
        assert await s.hosts[b.incarnation].run(b.ownership.release(0))
        await s.give(a, 0)
        assert await s.raw_client(9, a).ask(1, "read") == ["here", "there"]

    play(script, rest_idle_s=0.1)


@pytest.mark.parametrize("kind", [Box, Holding])
@pytest.mark.parametrize("rest_idle_s", [0.05, 3600.0])
def test_a_scan_over_cold_entities_keeps_the_bound_at_every_instant(
    kind: type[atoll.Entity], rest_idle_s: float
) -> None:
    """M13: in memory are at most the bound, and those that are at work or not durable yet: here 16 at a time."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        bound, at_once, entities = 50, 16, 1_000
        cluster = await s.client("caller")
        highest = 0

        async def scan(part: int, method: str, **arguments: Any) -> None:
            nonlocal highest
            for number in range(part, entities, at_once):
                await getattr(cluster.entity(kind, f"e{number}"), method)(**arguments)
                highest = max(highest, host.entities)

        for method, arguments in (("put", {"item": "x"}), ("read", {})):
            highest = 0
            await asyncio.gather(*(scan(part, method, **arguments) for part in range(at_once)))
            # a hook runs in a task of its own: meanwhile as many others come
            assert bound <= highest <= bound + at_once * (1 if kind is Box else 3)
            if kind is Holding:
                await until(lambda: host.entities <= bound, 0.01)
            assert host.entities == bound
        assert await cluster.entity(kind, "e0").put("y") == 1
        await cluster.client.close()

    play(script, kind, active_entities_max=50, rest_idle_s=rest_idle_s)
