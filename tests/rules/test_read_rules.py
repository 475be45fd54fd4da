"""Rules 14 to 17: leases, condemnation, and answers that no commit vouches for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scenario import Box, RawClient, Scenario, ScriptedStore, play, until

from atoll.actors.calls import Status
from atoll.persistence.spi import HostState

WITHOUT_EFFECT: dict[str, tuple[Status, dict[str, Any]]] = {
    "read": (Status.OK, {}),
    "count": (Status.OK, {}),
    "put_if_even": (Status.REJECTED, {"item": "no"}),
    "put_and_fail": (Status.HANDLER_FAILED, {"item": "no"}),
    "put": (Status.INVALID_COMMAND, {"itm": "no"}),
    "no_such_method": (Status.INVALID_COMMAND, {}),
}
KINDS_OF_ANSWERS = pytest.mark.parametrize("method", WITHOUT_EFFECT)


async def lapsed(host: Any) -> None:
    await until(lambda: not host.lease.valid())


# ---- rule 17: answers without effect


@KINDS_OF_ANSWERS
def test_no_answer_without_effect_leaves_while_the_lease_is_lapsed(method: str) -> None:
    """PR17, PR15: query, unchanged reply, refusal, failure, misfit: each says something of the state, which another owner
    may have changed by now. All are held until a renewal that was sent after they came; none is lost."""
    status, arguments = WITHOUT_EFFECT[method]

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("renew")
        await lapsed(a)
        c.call(2, method, **arguments)
        await asyncio.sleep(60)
        assert c.answers(2) == []
        assert not a.ended.done()
        held.let_go()
        assert (await c.answer(2))[0] is status

    play(script)


@KINDS_OF_ANSWERS
def test_no_repeat_of_an_answer_without_effect_leaves_while_the_lease_is_lapsed(method: str) -> None:
    """PR17, PR21: the remembered answer is no better vouched for than the first was."""
    _, arguments = WITHOUT_EFFECT[method]

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        c.call(2, method, **arguments)
        await c.answer(2)
        held = s.store_of(a).hold("renew")
        await lapsed(a)
        c.call(2, method, attempt=2, **arguments)
        await asyncio.sleep(60)
        assert len(c.answers(2)) == 1
        held.let_go()
        await until(lambda: len(c.answers(2)) == 2)
        assert c.answers(2)[0] == c.answers(2)[1]

    play(script)


@pytest.mark.parametrize("method", ["read", "count", "put_if_even", "put_and_fail"])
def test_an_answer_without_effect_waits_for_the_commit_that_it_saw(method: str) -> None:
    """PR17, M15: it ran on state that is staged and not durable: if that is lost, it never was."""
    status, arguments = WITHOUT_EFFECT[method]

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = s.raw_client(7, a), s.raw_client(8, a)
        await c.ask(1, "count")
        held = s.store_of(a).hold("append")
        c.call(2, "put", item="x")
        await held.reached()
        other.call(1, method, **arguments)
        await asyncio.sleep(30)
        assert other.answers(1) == []
        held.let_go()
        assert (await other.answer(1))[0] is status
        assert c.answers(2) == [(Status.OK, 0)]

    play(script)


@pytest.mark.parametrize("method", ["read", "count", "put_if_even", "put_and_fail"])
def test_its_repeat_waits_for_that_commit_too(method: str) -> None:
    """PR17, PR21, M15: a client that lost its connection asks again, and gets no answer before the first would have left."""
    status, arguments = WITHOUT_EFFECT[method]

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = s.raw_client(7, a), s.raw_client(8, a)
        held = s.store_of(a).hold("append")
        c.call(1, "put", item="x")
        await held.reached()
        other.call(1, method, **arguments)
        await asyncio.sleep(1)
        again = s.raw_client(8, a, 2)
        again.call(1, method, attempt=2, **arguments)
        await asyncio.sleep(30)
        assert again.answers(1) == []
        held.let_go()
        assert (await again.answer(1))[0] is status

    play(script)


def test_a_deadline_that_passed_in_the_mailbox_is_an_answer_like_the_others() -> None:
    """PR17, M12: it never ran, and says so, but not while the lease is lapsed."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=10.0, remaining_ms=60_000)
        c.call(2, "put", item="late", prev=1, remaining_ms=5_000)
        held = s.store_of(a).hold("renew")
        await c.answer(1)
        await asyncio.sleep(10)
        assert c.answers(2) == []
        held.let_go()
        assert (await c.answer(2))[0] is Status.DEADLINE_EXCEEDED
        assert await c.ask(3, "read") == ["slow"]

    play(script)


def test_an_answer_with_effect_needs_no_lease() -> None:
    """PR15: its commit is the proof that nobody else owned the shard. Writes go on while leases cannot be renewed."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        s.store_of(a).hold("renew")
        await lapsed(a)
        assert await c.ask(2, "put", item="y") == 1

    play(script)


def test_a_host_that_was_relieved_in_its_sleep_answers_no_read() -> None:
    """PR17, M15: it wakes up with a query in its socket, and another host has written meanwhile."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        s.hosts[a.incarnation].pause()
        c.call(2, "read")
        await asyncio.sleep(s.settings.lease_s + 0.1)
        await s.condemn(a)
        await s.give(b, 0)
        d = s.raw_client(8, b)
        assert await d.ask(1, "put", item="y") == 1
        s.hosts[a.incarnation].resume()
        assert await a.ended == "condemned"
        assert c.answers(2) == []

    play(script)


# ---- rule 15: the lease


def test_a_lease_counts_from_before_its_renewal_was_sent() -> None:
    """PR15: the answer of the store was late: what it took is not the host's to use, the coordinator counts it already."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        held = s.store_of(a).hold_reply("renew")
        await held.reached()
        loop = asyncio.get_running_loop()
        sent = loop.time()
        await asyncio.sleep(2.0)
        held.let_one_go()
        await asyncio.sleep(0.01)
        assert a.lease.until <= sent + s.settings.lease_s
        assert a.lease.until > sent + s.settings.lease_s - 0.1

    play(script)


def test_a_store_outage_ends_nobody() -> None:
    """PR15: leases lapse, answers wait, commits are repeated; when the store is back everything is answered."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        s.start_coordinator()
        store = s.store_of(a)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        store.down = s.coordinator_store.down = True
        c.call(2, "put", item="y", remaining_ms=10**6)
        c.call(3, "read", prev=2, remaining_ms=10**6)
        await asyncio.sleep(120)
        assert c.answers(2) == c.answers(3) == []
        store.down = s.coordinator_store.down = False
        assert await c.answer(2) == (Status.OK, 1)
        assert await c.answer(3) == (Status.OK, ["x", "y"])
        assert not a.ended.done()
        assert [row.state for row in await s.store.hosts()] == [HostState.LIVE]

    play(script)


# ---- rules 14 and 16: condemnation


async def states(s: Scenario) -> dict[int, HostState]:
    return {row.incarnation: row.state for row in await s.store.hosts()}


async def condemned_after(s: Scenario, host: Any) -> float:
    """Seconds until the coordinator condemns a host."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (await states(s)).get(host.incarnation) is HostState.LIVE:
        await asyncio.sleep(0.01)
        assert loop.time() < began + 60
    return loop.time() - began


async def two_hosts_and_a_coordinator(s: Scenario) -> tuple[Any, Any]:
    s.start_coordinator(hosts_wanted=2)
    a, b = await s.host(), await s.host()
    await until(lambda: len(a.shards) == len(b.shards) == 2)
    await asyncio.sleep(2)  # the coordinator has seen both, and is connected
    return a, b


def test_a_killed_host_is_relieved_at_once() -> None:
    """PR16: a new connection is refused by a live kernel: proof enough, no lease has to pass."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        s.kill(a)
        assert await condemned_after(s, a) < 0.5
        await until(lambda: len(b.shards) == 4, 1.0)

    play(script, shards=4)


def test_a_stopped_host_keeps_its_shards_for_its_lease() -> None:
    """PR14, PR16: its kernel accepts connections: no proof. It may answer reads until its lease is over."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        until_s = a.lease.until
        s.hosts[a.incarnation].pause()
        await condemned_after(s, a)
        assert asyncio.get_running_loop().time() >= until_s
        await until(lambda: len(b.shards) == 4, 1.0)

    play(script, shards=4)


def test_silence_is_no_proof() -> None:
    """PR16: a machine that vanished without a word refuses nothing: its lease is waited for, here much longer than the
    heartbeats that notice the silence."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        until_s = a.lease.until
        s.simulation.network.vanish(s.hosts[a.incarnation])
        await condemned_after(s, a)
        assert asyncio.get_running_loop().time() >= until_s
        await until(lambda: len(b.shards) == 4, 1.0)

    play(script, shards=4, lease_s=30.0)


def test_a_host_that_nobody_can_reach_but_that_renews_keeps_its_shards() -> None:
    """PR16: cut off from the coordinator, not from the store: it is alive, whatever it looks like."""

    async def script(s: Scenario) -> None:
        a, _ = await two_hosts_and_a_coordinator(s)
        s.simulation.network.cut(s.hosts[a.incarnation], s.coordinator)
        await asyncio.sleep(30)
        assert (await states(s))[a.incarnation] is HostState.LIVE
        assert len(a.shards) == 2

    play(script, shards=4)


def test_hosts_that_do_not_answer_the_coordinator_do_not_protect_a_silent_one() -> None:
    """PR14, PR16: while it waits for proofs that do not come, its reads go on in time, so that counts are not begun anew."""

    async def script(s: Scenario) -> None:
        s.start_coordinator(hosts_wanted=6)
        hosts = [await s.host() for _ in range(6)]
        await until(lambda: all(host.shards for host in hosts))
        await asyncio.sleep(2)
        silent, *unreachable = hosts[:5]
        for host in unreachable:
            s.simulation.network.cut(s.hosts[host.incarnation], s.coordinator)
        await asyncio.sleep(20)
        s.hosts[silent.incarnation].pause()
        assert await condemned_after(s, silent) < s.settings.lease_s + 1.0
        for host in unreachable:
            assert (await states(s))[host.incarnation] is HostState.LIVE

    play(script, shards=12)


def test_a_coordinator_that_could_not_read_counts_anew() -> None:
    """PR14: the store was away from the coordinator alone for longer than any lease: it has seen nothing, so it condemns
    nobody on its first look."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        held = s.stores[b.incarnation].hold("renew")
        await asyncio.sleep(1.2)  # b does not renew, and the coordinator cannot know for how long already
        coordinator = s.coordinator_store
        coordinator.down = True
        await asyncio.sleep(20)
        coordinator.down = False
        await asyncio.sleep(s.settings.lease_s - 1)
        assert (await states(s)) == {a.incarnation: HostState.LIVE, b.incarnation: HostState.LIVE}
        held.let_go()
        await asyncio.sleep(20)
        assert (await states(s)) == {a.incarnation: HostState.LIVE, b.incarnation: HostState.LIVE}

    play(script, shards=4)


WRITES = ("renew", "condemn", "open_session")
"""Those that are tried by themselves while nobody works."""


def take_writes(store: ScriptedStore, *, again: bool) -> None:
    """False: from now on the store is read as ever, and takes nothing, as on a full disk. True: it takes all again."""
    for name in WRITES:
        store.lose(name, 0 if again else 10**9)


@pytest.mark.parametrize("seconds", [20.0, 21.0, 22.0])
def test_nobody_is_condemned_for_a_store_that_took_no_writes(seconds: float) -> None:
    """PR14, R02: who could not be condemned could not renew either. Whenever the store takes writes again, everybody has
    a whole lease to renew in, also when the coordinator is the first to notice; who does not renew then is condemned."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        stores = [s.coordinator_store, s.store_of(a), s.store_of(b)]
        for store in stores:
            take_writes(store, again=False)
        await asyncio.sleep(seconds)
        assert "condemn" in s.coordinator_store.names(), "it did not bite"
        take_writes(s.coordinator_store, again=True)
        await asyncio.sleep(s.settings.lease_s - 0.2)
        assert set((await states(s)).values()) == {HostState.LIVE}
        take_writes(s.store_of(a), again=True)
        assert await condemned_after(s, b) < 1.0
        await until(lambda: len(a.shards) == 4, 1.0)
        assert (await states(s))[a.incarnation] is HostState.LIVE

    play(script, shards=4, lease_renew_s=0.1, retry_max_s=0.1)


def test_a_host_that_died_while_the_store_took_no_writes_is_relieved_as_soon_as_it_does() -> None:
    """PR16, R02: its death is proved: no lease has to pass."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        for store in (s.coordinator_store, s.store_of(b)):
            take_writes(store, again=False)
        s.kill(a)
        await asyncio.sleep(20)
        assert (await states(s))[a.incarnation] is HostState.LIVE
        for store in (s.coordinator_store, s.store_of(b)):
            take_writes(store, again=True)
        assert await condemned_after(s, a) < 0.5
        await until(lambda: len(b.shards) == 4, 1.0)

    play(script, shards=4)


def test_a_host_is_condemned_before_its_shards_are_given_away() -> None:
    """PR14: at the moment of each assignment of what it had, its row says GONE: it can renew no more."""

    async def script(s: Scenario) -> None:
        a, b = await two_hosts_and_a_coordinator(s)
        coordinator = s.coordinator_store
        held = coordinator.hold("assign")
        s.hosts[a.incarnation].pause()
        await held.reached()
        assert (await states(s))[a.incarnation] is HostState.GONE
        assert not await s.store.renew(a.incarnation)
        held.let_go()
        await until(lambda: len(b.shards) == 4)
        order = [name for name in coordinator.names() if name in ("condemn", "assign")]
        assert order[-2:] == ["condemn", "assign"]

    play(script, shards=4)


def test_a_query_answers_from_staged_state_only_after_its_commit_even_over_a_failover() -> None:
    """M15: what a reader saw is never taken back: the append dies with its host, and so does the answer that saw it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c, reader = s.raw_client(7, a), s.raw_client(8, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("append")
        c.call(2, "put", item="lost")
        await held.reached()
        reader.call(1, "read")
        await asyncio.sleep(1)
        await s.fail_over(a, b, 0)
        again: RawClient = s.raw_client(8, b, 2)
        assert await again.ask(1, "read", attempt=2) == ["x"]
        assert reader.answers(1) == []

    play(script, Box)
