"""Rule 27: clients are registered, expire, and are not forked."""

from __future__ import annotations

import asyncio
import os

import pytest
from scenario import Box, Scenario, play, until

import atoll
from atoll.sharding.host import Host

SHORT = {"session_touch_s": 1.0, "session_s": 10.0, "checkpoint_s": 1.0}


def test_a_client_that_stays_away_is_forgotten_everywhere() -> None:
    """PR27, J17: its session, its windows in memory and its rows in the tables go; a connected one keeps all three."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        s.start_coordinator()
        stays = await s.client("stays")
        await stays.entity(Box, "a").put("x")
        for number in range(30):
            once = await s.client(f"once-{number}")
            await once.entity(Box, f"e{number}").put("x")
            await once.client.close()
        assert len(await s.store.sessions()) == 31
        assert len(a.shards[0].windows) == 31
        await asyncio.sleep(20)
        assert set(await s.store.sessions()) == {stays.client.client_id}
        assert set(a.shards[0].windows) == {stays.client.client_id}
        assert [row.client for row in await s.store.read_clients(0)] == [stays.client.client_id]
        assert await stays.entity(Box, "a").put("y") == 1
        assert stays.client.client_id == 1, "it was never registered anew"
        await stays.client.close()

    play(script, **SHORT)


def test_an_expired_session_is_refused_at_the_handshake_and_its_client_begins_anew() -> None:
    """PR27: what was under way has an unknown outcome, what was not sent gets a new number, and the client works on."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        assert await box.put("x") == 0
        first = cluster.client.client_id
        s.hosts[a.incarnation].pause()
        under_way = asyncio.ensure_future(box.put.using(timeout=300)("y"))
        await asyncio.sleep(10)
        assert await s.store.expire_sessions(list((await s.store.sessions()).items())) == {first}
        s.hosts[a.incarnation].resume()
        for peer in a._intake.peers():
            peer.close("the script cuts it")
        with pytest.raises(atoll.OutcomeUnknown, match="session expired"):
            await under_way
        place = await box.put("z")
        assert cluster.client.client_id > first
        items = await box.read()
        assert items[place] == "z"
        assert items in (["x", "z"], ["x", "y", "z"])
        await cluster.client.close()

    play(script, lease_s=3600.0)


def test_a_host_asks_the_store_whether_a_session_still_exists() -> None:
    """PR27: each connection of a known client is checked, at every host."""

    async def script(s: Scenario) -> None:
        a: Host = await s.host(0)
        client = await a.admit(0)
        assert client
        assert await a.admit(client) == client
        await s.store.expire_sessions([(client, 1)])
        assert await a.admit(client) is None

    play(script)


def test_a_connected_client_whose_session_expired_is_cut_off() -> None:
    """PR27: the store forgot it (a host could not renew for too long): its windows go, so it may not go on as before."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        await cluster.entity(Box, "a").put("x")
        first = cluster.client.client_id
        await s.store.expire_sessions(list((await s.store.sessions()).items()))
        await until(lambda: first not in a.shards[0].windows)
        await until(lambda: cluster.client.client_id not in (0, first))
        assert await cluster.entity(Box, "a").put("y") == 1
        await cluster.client.close()

    play(script, session_touch_s=1.0)


def test_sessions_are_counted_only_while_the_coordinator_can_read_them() -> None:
    """PR27: after an outage nobody is expired on the first look."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        s.start_coordinator()
        cluster = await s.client("caller")
        await asyncio.sleep(5)
        for store in (*s.stores.values(), s.coordinator_store):
            store.down = True
        await asyncio.sleep(60)
        for store in (*s.stores.values(), s.coordinator_store):
            store.down = False
        await asyncio.sleep(30)
        assert list(await s.store.sessions()) == [cluster.client.client_id]
        await cluster.client.close()

    play(script, **SHORT)


def test_a_forked_child_may_not_speak_with_its_parents_numbers() -> None:
    """PR27: two processes with one client's numbers would take each other's replies. The child is told to connect anew."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        assert await box.put("parent") == 0
        child = os.fork()
        if not child:
            code = 1
            try:
                box.put("child").send(None)
            except atoll.Unavailable as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - on virtual time nobody else waits meanwhile
        assert os.waitstatus_to_exitcode(status) == 0
        assert await box.put("parent") == 1
        await cluster.client.close()

    play(script)
