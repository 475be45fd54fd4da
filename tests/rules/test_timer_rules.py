"""Durable timers: a tick for each schedule, exactly once, unless it is overtaken before it has run."""

from __future__ import annotations

import asyncio

import pytest
from post import RUNS, Post, client_of, read
from scenario import Scenario, play, until

from atoll.actors.kind import kind_of
from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.records import TimerRow


async def in_tables(s: Scenario, shard: int = 0) -> list[TimerRow]:
    """What stands there once everything is written."""
    owner = (await s.row(shard)).owner
    assert owner is not None
    host = s.running[owner].host
    await until(lambda: host.commits.committed == host.commits.staged)
    await s.hosts[owner].run(host.upkeep.checkpoint())
    return await s.store.read_timers(shard, BEFORE_ALL_TIMERS, 2**60, 1000)


# ---- once


@pytest.mark.parametrize("what", ["put", "leave_alone"])
def test_a_tick_is_over_with_its_record_also_when_nothing_changed(what: str) -> None:
    """M10, PR23: it fires at its time, its record takes the timer away, and no later owner fires it again."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = client_of(s, 7, a)
        began = asyncio.get_running_loop().time()
        await c.ask(1, "schedule_what", name="t", ms=5_000, what=what, item="x")
        assert len(await in_tables(s)) == 1
        await until(lambda: RUNS["x"])
        assert 5.0 <= asyncio.get_running_loop().time() - began < 5.1
        await until(lambda: a.commits.committed == a.commits.staged)
        await s.fail_over(a, b, 0)
        await asyncio.sleep(5)
        assert RUNS["x"] == 1
        assert await in_tables(s) == []

    play(script, Post)


@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_a_tick_that_died_with_its_host_is_fired_by_the_next(checkpointed: bool) -> None:
    """M10, J15: it had run, and nothing of it was committed."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = client_of(s, 7, a)
        await c.ask(1, "schedule", name="t", ms=1_000, item="x")
        if checkpointed:
            await a.upkeep.checkpoint()
        held = s.store_of(a).hold("append")
        await until(lambda: RUNS["x"])
        await held.reached()
        await s.fail_over(a, b, 0)
        await until(lambda: RUNS["x"] == 2)
        assert await read(s) == ["x"]
        assert await in_tables(s) == []

    play(script, Post)


def test_a_repeating_timer_keeps_to_its_grid_and_its_set_number() -> None:
    """M10: over failovers; one tick for each point of the grid."""

    async def script(s: Scenario) -> None:
        serving = await s.host(0)
        c = client_of(s, 7, serving)
        await c.ask(1, "repeat", name="t", every_ms=1_000, item="x", missed="catch_up")
        (row,) = await in_tables(s)
        for _ in range(3):
            await asyncio.sleep(3.3)
            successor = await s.host()
            await s.fail_over(serving, successor, 0)
            serving = successor
        await asyncio.sleep(0.5)
        assert await read(s) == ["x"] * 10
        (later,) = await in_tables(s)
        assert later.timer.set_at == row.timer.set_at
        assert later.timer.due_ms == row.timer.due_ms + 10_000

    play(script, Post)


@pytest.mark.parametrize(("missed", "ticks"), [("coalesce", 1), ("catch_up", 60)])
def test_what_was_missed_during_a_downtime_runs_as_its_timer_says(missed: str, ticks: int) -> None:
    """M10, S15: a minute without a host: one tick for all of it, or each."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        await client_of(s, 7, a).ask(1, "repeat", name="t", every_ms=1_000, item="x", missed=missed)
        s.kill(a)
        await s.condemn(a)
        await asyncio.sleep(60)
        b = await s.host(0)
        await until(lambda: RUNS["x"] == ticks)
        await until(lambda: b.commits.committed == b.commits.staged)
        (row,) = await in_tables(s)
        now_ms = s.simulation.world("now").wall_ms()
        assert now_ms - 100 < row.timer.due_ms <= now_ms + 1_000
        assert len(await read(s)) == ticks

    play(script, Post)


# ---- overtaken


@pytest.mark.parametrize("how", ["cancelled", "set anew", "deleted"])
def test_a_tick_that_is_queued_is_overtaken(how: str) -> None:
    """M10, M20: it was fired already and waits behind a turn that cancels it, sets it anew, or deletes the entity."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        await c.ask(1, "schedule", name="t", ms=1_000, item="old")
        other.call(1, "put_slowly", item="slow", seconds=3.0)
        await asyncio.sleep(0.5)
        if how == "cancelled":
            c.call(2, "cancel", name="t")
        elif how == "set anew":
            c.call(2, "schedule", name="t", ms=60_000, item="new")
        else:
            c.call(2, "clear")
        await asyncio.sleep(1)
        assert sum(a._timers._in_flight.values()) == 1, "fired, and not run"
        assert (await c.answer(2))[0].name == "OK"
        await asyncio.sleep(30)
        assert RUNS["old"] == 0
        assert sum(a._timers._in_flight.values()) == 0
        rows = await in_tables(s)
        assert [row.timer.name for row in rows] == (["t"] if how == "set anew" else [])
        await asyncio.sleep(40)
        assert RUNS["new"] == (how == "set anew")

    play(script, Post)


def test_a_tick_that_failed_is_overtaken_during_its_pause() -> None:
    """M10, M08: what it would try again is not wanted any more."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_what", name="t", ms=0, what="fail", item="x")
        await until(lambda: RUNS["x"] == 2)
        await c.ask(2, "cancel", name="t")
        tried = RUNS["x"]
        await asyncio.sleep(60)
        assert RUNS["x"] == tried
        assert await in_tables(s) == []
        assert await s.store.read_dead_letters(0) == []

    play(script, Post, tell_retry_first_s=1.0)


def test_what_a_tick_says_of_its_own_timer_counts() -> None:
    """M10: it sets its name anew, or cancels a repetition: the record does not undo that."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_again", name="t", ms=1_000, times=3)
        await c.ask(2, "repeat_until", name="u", every_ms=1_000, times=3)
        await asyncio.sleep(30)
        assert sorted(await read(s)) == ["t1", "t2", "t3", "u1", "u2", "u3"]
        assert await in_tables(s) == []

    play(script, Post)


# ---- deletion


@pytest.mark.parametrize("where", ["loaded", "in the tables", "in the log of a former owner", "being loaded"])
def test_a_deletion_takes_all_timers(where: str) -> None:
    """M20: also those that were never in this host's memory, and one that is being read; those of others stay."""

    async def script(s: Scenario) -> None:
        serving = await s.host(0)
        far_ms = 5_000 if where == "loaded" else 100_000
        c = client_of(s, 7, serving)
        for number, (id, name) in enumerate((id, name) for id in "ab" for name in "tu"):
            await c.ask(number + 1, "schedule", id=id, name=name, ms=far_ms, item=f"{id}{name}")
        if where != "in the log of a former owner":
            await serving.upkeep.checkpoint()
        if where != "loaded":
            successor = await s.host()
            await s.fail_over(serving, successor, 0)
            serving = successor
        if where == "being loaded":
            await asyncio.sleep(45)
            held = s.store_of(serving).hold_reply("read_timers")
            await held.reached()
        d = client_of(s, 7, serving, 2)
        if where == "being loaded":
            writing = s.store_of(serving).hold("append")
            d.call(5, "clear", id="a", floor=5)
            await writing.reached()
            held.let_go()
            await until(lambda: serving.shards[0].timers.loading_to is None)
            writing.let_go()
            await d.answer(5)
        else:
            await d.ask(5, "clear", id="a", floor=5)
        await asyncio.sleep(10 if where == "loaded" else 110)
        assert [name for name in sorted(RUNS) if RUNS[name]] == ["bt", "bu"]
        assert await in_tables(s) == []

    play(script, Post)


def test_what_a_command_schedules_after_its_deletion_stays() -> None:
    """M20: it belongs to the entity that begins anew."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule", name="t", ms=1_000, item="old")
        await c.ask(2, "clear_and_schedule", name="t", ms=2_000, item="new")
        await asyncio.sleep(10)
        assert await read(s) == ["new"]
        assert RUNS["old"] == 0

    play(script, Post)


# ---- loading and pace


@pytest.mark.parametrize("pages", [1, 7, 1000])
def test_a_backlog_fires_each_timer_once_and_in_step(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """M10, S08: 300 timers became due while no host was there: all fire by themselves, a few at the same time, whatever
    the size of the pages that are read."""
    monkeypatch.setattr("atoll.sharding.timers.PAGE", pages)

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        await asyncio.gather(
            *(cluster.entity(Post, f"e{n % 60}").schedule(f"t{n}", n % 7 * 100 + 1000, f"{n}") for n in range(300))
        )
        await cluster.client.close()
        await a.upkeep.checkpoint()
        s.kill(a)
        await s.condemn(a)
        await asyncio.sleep(60)
        b = await s.host(0)
        most = 0
        while sum(RUNS.values()) < 300:
            most = max(most, sum(b._timers._in_flight.values()))
            await asyncio.sleep(0.0005)
        assert most <= 10
        await asyncio.sleep(5)
        assert {f"{n}": 1 for n in range(300)} == RUNS
        assert await in_tables(s) == []
        assert len(b.shards[0].timers) == 0

    play(script, Post, timers_in_flight_max=10)


def test_timers_in_memory_are_bounded_also_when_all_are_due() -> None:
    """M10: those that fire come first; the others wait in the store."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        await asyncio.gather(*(cluster.entity(Post, f"e{n}").schedule("t", 1000, f"{n}") for n in range(300)))
        await cluster.client.close()
        await a.upkeep.checkpoint()
        s.kill(a)
        await s.condemn(a)
        await asyncio.sleep(60)
        b = await s.host(0)
        most = 0
        while sum(RUNS.values()) < 300:
            most = max(most, len(b.shards[0].timers) if 0 in b.shards else 0)
            await asyncio.sleep(0.0005)
        assert most <= 20 + 10 + 3
        await asyncio.sleep(5)
        assert {f"{n}": 1 for n in range(300)} == RUNS

    patch = pytest.MonkeyPatch()
    with patch.context() as small:
        small.setattr("atoll.sharding.timers.PAGE", 10)
        play(script, Post, timers_in_flight_max=3, timers_loaded_max=20)


def test_a_tick_finds_no_room_and_comes_again() -> None:
    """M10, M14: the mailbox of its entity is full; it neither is lost nor runs before its time."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule", name="t", ms=500, item="x")
        c.call(2, "put_slowly", item="slow", seconds=2.0)
        await until(lambda: RUNS["slow"])
        c.call(3, "put", item="1", prev=2)
        c.call(4, "put", item="2", prev=3)
        await asyncio.sleep(1.5)
        assert sum(a._timers._in_flight.values()) == 0
        await until(lambda: RUNS["x"])
        assert await read(s) == ["slow", "1", "2", "x"]

    play(script, Post, mailbox_commands_max=2)


def test_a_timer_of_a_command_that_this_app_has_no_more_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """M08, M10: it cannot run; a repeating one leaves one letter per tick."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_what", name="t", ms=1_000, what="leave_alone", item="x")
        await c.ask(2, "repeat", name="u", every_ms=1_000, item="y")
        monkeypatch.delitem(kind_of(Post).handlers, "leave_alone")  # type: ignore[arg-type] # a dict, read-only by type
        monkeypatch.delitem(kind_of(Post).handlers, "put")  # type: ignore[arg-type]
        await asyncio.sleep(3.5)
        rows = await in_tables(s)
        assert [(row.timer.name, row.timer.attempts) for row in rows] == [("u", 0)]
        letters = [row.letter for row in await s.store.read_dead_letters(0)]
        assert sorted((letter.timer, letter.method, letter.reason) for letter in letters) == [
            ("t", "leave_alone", "invalid"),
            *[("u", "put", "invalid")] * 3,
        ]
        assert "no command Post.leave_alone" in letters[0].error
        assert a._timers._in_flight == {}

    play(script, Post)


# ---- failure and release


def test_a_handler_that_fails_leaves_no_trace_in_timers_and_outbox() -> None:
    """M09: what it sent, set and cancelled before it failed is not heard of, however often it is tried."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule", name="kept", ms=5_000, item="kept")
        c.call(2, "fail", item="asked")
        assert (await c.answer(2))[0].name == "HANDLER_FAILED"
        c.tell(3, "fail", item="told")
        await c.accepted(3)
        await until(lambda: a.shards[0].dead_letters)
        await asyncio.sleep(10)
        assert sorted(RUNS) == ["asked", "kept", "told"]
        assert (RUNS["told"], RUNS["kept"]) == (3, 1)
        assert await read(s) == ["kept"]
        assert await read(s, "other") == []
        assert await in_tables(s) == []

    play(script, Post, tell_attempts_max=3)


@pytest.mark.parametrize("rolled_back", [True, False], ids=["rolled back", "released"])
def test_ticks_that_were_fired_when_a_release_began_are_not_lost(rolled_back: bool) -> None:
    """PR13, M10: they went with the mailboxes; whoever has the shard fires them again."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        for number, name in enumerate("tuv"):
            await c.ask(number + 1, "schedule", name=name, ms=1_000, item=name)
        await c.ask(4, "schedule_what", id="slow tick", name="t", ms=1_000, what="wait_a_second", item="slow tick")
        other.call(1, "put_slowly", item="slow", seconds=20.0 if rolled_back else 5.0, remaining_ms=60_000)
        await asyncio.sleep(1.5)
        assert sum(a._timers._in_flight.values()) == 4
        assert await s.hosts[a.incarnation].run(a.ownership.release(0)) is not rolled_back
        if not rolled_back:
            await s.give(b, 0)
        await until(lambda: all(RUNS[name] for name in "tuv"))
        await asyncio.sleep(5)
        assert [RUNS[name] for name in "tuv"] == [1, 1, 1]
        assert RUNS["slow tick"] == 1
        assert (await read(s))[1:] == ["t", "u", "v"]
        host = a if rolled_back else b
        assert host._timers._in_flight == {}
        assert await in_tables(s) == []

    play(script, Post)


def test_a_clock_that_is_behind_makes_ticks_late_and_none_early() -> None:
    """R07, M10: the wall clock of the next owner is ten minutes behind: the tick comes when it is due by that one."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await client_of(s, 7, a).ask(1, "schedule", name="t", ms=60_000, item="x")
        b._world.wall_offset_ms = -600_000  # type: ignore[attr-defined] # a simulated world
        await s.fail_over(a, b, 0)
        await asyncio.sleep(300)
        assert RUNS["x"] == 0
        b._world.wall_offset_ms = 0  # type: ignore[attr-defined] # the clock steps
        await asyncio.sleep(5)
        assert RUNS["x"] == 1

    play(script, Post)
