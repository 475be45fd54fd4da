"""A store that fails, stops or crawls: who waits, who hears what, how often it is tried, and how soon all is well again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from scenario import Box, Scenario, ScriptedStore, play, until

import atoll

SENDERS = 24
BACK_S = 5.0
"""After the end of an outage everything is as before."""


class Senders:
    """Some that send one command after the other, each to an entity of its own, and what became of them."""

    def __init__(self, cluster: Any, timeout_s: float) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        self.unknown: dict[str, list[str]] = {}
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self.stopped = False
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._tasks = [asyncio.ensure_future(self._send(f"s{n}")) for n in range(SENDERS)]

    async def _send(self, id: str) -> None:
        number = 0
        while not self.stopped:
            item = f"{id}.{number}"
            number += 1
            began = asyncio.get_running_loop().time()
            try:
                await self._cluster.entity(Box, id).put.using(timeout=self._timeout_s)(item)
                self.acknowledged.setdefault(id, []).append(item)
            except atoll.OutcomeUnknown:
                self.unknown.setdefault(id, []).append(item)
                self.errors["OutcomeUnknown"] += 1
            except atoll.NotExecuted as error:
                self.errors[type(error).__name__] += 1
            self.slowest = max(self.slowest, asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.01)

    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def stop(self) -> None:
        self.stopped = True
        await asyncio.gather(*self._tasks)

    async def check(self) -> None:
        """All that was acknowledged is there, once and in order; nothing that surely did not run is."""
        for id, items in self.acknowledged.items():
            found = await self._cluster.entity(Box, id).read()
            assert len(set(found)) == len(found)
            assert [item for item in found if item in set(items)] == items
            assert set(found) - set(items) <= set(self.unknown.get(id, ()))


async def back(senders: Senders) -> None:
    """Everybody is answered again, as fast as ever, soon."""
    await asyncio.sleep(BACK_S)
    before, senders.slowest = senders.count(), 0.0
    await asyncio.sleep(2)
    assert senders.count() - before > SENDERS * 2 / 0.05
    assert senders.slowest < 0.1


def calls_during(store: ScriptedStore, since: int) -> int:
    return len(store.calls) - since


@pytest.mark.parametrize("timeout_s", [2.0, 60.0], ids=["impatient", "patient"])
def test_a_store_that_fails_for_ten_seconds(timeout_s: float) -> None:
    """R01: callers wait within their deadlines, then hear `Unavailable` or that the outcome is unknown; the breaker lets
    a trial through now and then; five seconds after the end all is as before, and nothing acknowledged is lost."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        store = s.store_of(host)
        senders = Senders(await s.client("X"), timeout_s)
        await asyncio.sleep(1)
        assert not senders.errors
        store.down, since, committed = True, len(store.calls), host.commits.committed
        await asyncio.sleep(10)
        tries = calls_during(store, since) - 10  # its own renewals of the lease, one a second
        assert 10 <= tries <= 60, "tried now and then, and not by everybody who waits"
        assert host.commits.committed == committed
        store.down = False
        await back(senders)
        await senders.stop()
        await senders.check()
        if timeout_s > 10:
            assert not senders.errors
        else:
            assert senders.errors["Unavailable"] > senders.errors["OutcomeUnknown"] > 0

    play(script, lease_s=30.0, uncommitted_commands_max=100)


@pytest.mark.parametrize("how", ["append", "everything"])
def test_a_store_that_hangs_for_ten_seconds(how: str) -> None:
    """R01: nothing fails, nothing answers. What is staged is bounded; everybody hears in time."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        store = s.store_of(host)
        senders = Senders(await s.client("X"), 2.0)
        await asyncio.sleep(1)
        names = ["append"] if how == "append" else ["append", "read_entity", "shards", "checkpoint", "read_commits"]
        holds = [store.hold(name) for name in names]
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert host.commits.staged - host.commits.committed <= 60
        assert senders.slowest < 2.0 + s.settings.verdict_s + 0.1
        for hold in holds:
            hold.let_go()
        await back(senders)
        await senders.stop()
        await senders.check()
        assert senders.errors["Unavailable"] > 0

    play(script, lease_s=30.0, uncommitted_commands_max=20)


def test_a_store_whose_appends_take_two_seconds() -> None:
    """R01: it is slow, and not stuck: everybody waits for it and nobody fails."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        store = s.store_of(host)
        senders = Senders(await s.client("X"), 10.0)
        await asyncio.sleep(1)
        hold = store.hold_reply("append")
        for _ in range(10):
            await hold.reached()
            await asyncio.sleep(2)
            hold.let_one_go()
        before = senders.count()
        hold.let_go()
        await back(senders)
        await senders.stop()
        await senders.check()
        assert before > SENDERS * 10
        assert not senders.errors

    play(script)


def test_turns_that_load_from_a_failing_store_do_not_hammer_it() -> None:
    """R01: two hundred cold entities wait for their state: the store sees a trial now and then, and then all of them."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        store = s.store_of(host)
        store.down = True
        clients = [s.raw_client(100 + n, host) for n in range(20)]
        for client in clients:
            for number in range(1, 11):
                client.call(number, "put", id=f"{client.client}.{number}", item="x", remaining_ms=60_000)
        since = len(store.calls)
        await asyncio.sleep(10)
        assert calls_during(store, since) - 10 < 200 + 60, "each once, when nobody knew yet"
        store.down = False
        await until(lambda: all(client.answers(number) for client in clients for number in range(1, 11)), BACK_S)

    play(script, lease_s=30.0)
