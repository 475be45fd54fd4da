"""Rules 23 and 28: a tell that was accepted runs exactly once and in its order, whoever dies, and kills no one for ever."""

from __future__ import annotations

import asyncio

import pytest
from post import RUNS, Post, client_of, dead_letters, read
from scenario import Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.persistence.records import Record
from atoll.sharding.hashing import shard_of
from atoll.sharding.host import Host

BOTH = pytest.mark.parametrize("planned", [True, False], ids=["handoff", "failover"])


async def move(s: Scenario, source: Host, target: Host, *, planned: bool) -> None:
    if planned:
        assert await s.hosts[source.incarnation].run(source.ownership.release(0))
        await s.give(target, 0)
    else:
        await s.fail_over(source, target, 0)


def accepted(records: list[Record]) -> list[tuple[int, int]]:
    """(client, number) of what was accepted, in order."""
    return [
        (record.delivery.accepted.client, record.delivery.accepted.number)
        for record in records
        if record.delivery is not None and record.delivery.accepted is not None
    ]


# ---- rule 23: accepting


def test_a_tell_that_runs_at_once_is_one_record() -> None:
    """PR23: its record is its acceptance: it costs what an ask costs."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "read")
        c.tell(2, "put", item="x")
        await c.accepted(2)
        (record,) = await s.records(a)
        assert (record.client, record.number, record.seq, record.delivery) == (7, 2, 1, None)

    play(script, Post)


def test_a_tell_behind_a_turn_that_waits_is_accepted_by_a_record_of_its_own() -> None:
    """PR23, M05: its sender is answered while the turn still runs; the entry's number is the record's position, and the
    record of its run ends it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        other, c = client_of(s, 8, a), client_of(s, 7, a)
        other.call(1, "put_slowly", item="slow", seconds=5.0)
        c.tell(1, "put", item="x")
        await c.accepted(1)
        assert RUNS["x"] == 0
        (acceptance,) = await s.records(a)
        assert accepted([acceptance]) == [(7, 1)]
        await other.answer(1)
        await until(lambda: a.commits.committed == 3)
        assert (await s.records(a))[2].delivery.done == acceptance.position  # type: ignore[union-attr] # it is done
        assert await read(s) == ["slow", "x"]

    play(script, Post)


def test_a_tell_is_not_accepted_before_an_earlier_command_of_its_sender_has_run() -> None:
    """PR23: an ask that still runs, of the same client to the same entity, holds it up; those of others, and to others,
    do not. A crash before both are done finds neither, and the client sends both again, in order."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        c.call(1, "put_slowly", item="first", seconds=5.0)
        c.tell(2, "put", item="second", prev=1)
        c.tell(3, "put", id="elsewhere", item="third")
        other.tell(1, "put", item="other's")
        await c.accepted(3)
        await other.accepted(1)
        await asyncio.sleep(2)
        assert c.answers(1) == c.answers(2) == []
        assert (7, 2) not in accepted(await s.records(a))
        await s.fail_over(a, b, 0)
        d = client_of(s, 7, b, 2)
        d.call(1, "put_slowly", item="first", seconds=1.0, attempt=2)
        d.tell(2, "put", item="second", prev=1, attempt=2)
        await d.accepted(2)
        assert await read(s) == ["other's", "first", "second"]

    play(script, Post)


def test_a_tell_waits_for_an_ask_that_waits_in_the_mailbox() -> None:
    """PR23: what counts is the order in which they were sent, not whether the turn has begun."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        other.call(1, "put_slowly", item="slow", seconds=5.0)
        c.tell(1, "put", item="1")
        c.call(2, "put", item="2", prev=1)
        c.tell(3, "put", item="3", prev=2)
        await c.accepted(1)
        await asyncio.sleep(2)
        assert accepted(await s.records(a)) == [(7, 1)]
        await s.fail_over(a, b, 0)
        d = client_of(s, 7, b, 2)
        d.call(2, "put", item="2", attempt=2, floor=2)
        d.tell(3, "put", item="3", prev=2, attempt=2, floor=2)
        await d.accepted(3)
        assert await read(s) == ["1", "2", "3"]

    play(script, Post)


@BOTH
@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_an_accepted_tell_runs_at_the_next_owner_and_its_repeat_is_only_answered(
    planned: bool, checkpointed: bool
) -> None:
    """M05, PR23, S08: nobody calls; the sender, which did not hear of the acceptance, sends it again and is answered from
    the record."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        other, c = client_of(s, 8, a), client_of(s, 7, a)
        other.call(1, "put_slowly", item="slow", seconds=1.0)
        c.tell(1, "put", item="x")
        await c.accepted(1)
        if checkpointed:
            await a.upkeep.checkpoint()
        await move(s, a, b, planned=planned)
        d = client_of(s, 7, b, 2)
        d.tell(1, "put", item="x", attempt=2)
        await d.accepted(1)
        await until(lambda: RUNS["x"])
        d.tell(1, "put", item="x", attempt=3)
        await asyncio.sleep(1)
        assert RUNS["x"] == 1
        assert await read(s) == (["slow", "x"] if planned else ["x"])

    play(script, Post)


@BOTH
def test_what_is_done_is_written_also_when_nothing_changed(planned: bool) -> None:
    """PR23: else the next owner would run it again."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        other, c = client_of(s, 8, a), client_of(s, 7, a)
        other.call(1, "put_slowly", item="slow", seconds=1.0)
        c.tell(1, "leave_alone", item="x")
        await c.accepted(1)
        await until(lambda: RUNS["x"])
        await until(lambda: a.commits.committed == a.commits.staged)
        await move(s, a, b, planned=planned)
        await asyncio.sleep(5)
        assert RUNS["x"] == 1
        assert await s.store.read_mailbox(0, "Post", "a") == []

    play(script, Post)


def test_what_was_accepted_keeps_its_place_before_what_its_sender_asks_later() -> None:
    """PR23, M01: over a failover: the accepted ones come from the store, the ask comes again from its client."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        cluster = await s.client("caller")
        box = cluster.entity(Post, "a")
        slow = asyncio.ensure_future(box.put_slowly("0", 1.0))
        await asyncio.sleep(0.1)
        other = client_of(s, 8, a)
        other.call(1, "put_slowly", item="others", seconds=5.0)
        await slow
        await asyncio.gather(*(box.put.tell(str(number)) for number in range(1, 6)))
        last = asyncio.ensure_future(box.put("6"))
        await asyncio.sleep(0.1)
        await s.fail_over(a, b, 0)
        assert await last == 6
        assert await read(s) == [str(number) for number in range(7)]
        await cluster.client.close()

    play(script, Post)


def test_a_tell_that_was_given_up_before_it_was_accepted_does_not_run() -> None:
    """PR23, M12: its client was told that the outcome is unknown; nobody takes it over afterwards."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        other = client_of(s, 8, a)
        c.call(1, "put_slowly", item="slow", seconds=5.0)
        other.call(1, "put_slowly", item="slower", seconds=5.0, remaining_ms=60_000)
        c.tell(2, "put", item="given up", prev=1, remaining_ms=60_000)
        await asyncio.sleep(1)
        c.call(3, "put", id="b", item="x", floor=3)
        await c.answer(3)
        await other.answer(1)
        await until(lambda: not a.shards[0].residents["Post", "a"].scheduled)
        assert RUNS["given up"] == 0
        assert accepted(await s.records(a)) == []

    play(script, Post)


# ---- rule 28: attempts


def attempts(records: list[Record]) -> list[tuple[tuple[int, int], ...]]:
    """(entry, attempts) of each record that counts."""
    return [record.delivery.attempts for record in records if record.delivery is not None and record.delivery.attempts]


async def accepted_behind_a_slow_one(s: Scenario, a: Host, *tells: tuple[str, str]) -> list[int]:
    """Let tells (method, item) be accepted while another turn runs; return their entries."""
    other, c = client_of(s, 8, a), client_of(s, 7, a)
    other.call(1, "put_slowly", item="slow", seconds=5.0)
    for number, (method, item) in enumerate(tells, 1):
        c.tell(number, method, item=item, prev=number - 1)
        await c.accepted(number)
    return [record.position for record in await s.records(a)]


def test_the_attempt_of_a_recovered_entry_is_committed_before_it_runs() -> None:
    """PR28: a host that dies of it leaves word that it was tried."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        (entry,) = await accepted_behind_a_slow_one(s, a, ("put", "x"))
        held = s.store_of(b).hold("append")
        await s.fail_over(a, b, 0)
        await held.reached()
        await asyncio.sleep(5)
        assert RUNS["x"] == 0
        held.let_go()
        await until(lambda: RUNS["x"])
        assert attempts(await s.records(b)) == [((entry, 1),)]

    play(script, Post)


def test_the_first_attempts_of_recovered_entries_are_counted_together() -> None:
    """PR28: one commit for each would make a long backlog slow; what this owner took over itself is not counted at all."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        entries = await accepted_behind_a_slow_one(s, a, *(("put", str(number)) for number in range(5)))
        await s.fail_over(a, b, 0)
        await until(lambda: RUNS["4"])
        await until(lambda: b.commits.committed == b.commits.staged)
        assert attempts(await s.records(b)) == [tuple((entry, 1) for entry in entries)]
        assert await read(s) == list("01234")
        other, c = client_of(s, 8, b, 2), client_of(s, 7, b, 2)
        other.call(2, "put_slowly", item="slow", seconds=1.0)
        c.tell(6, "put", item="new", floor=6)
        await c.accepted(6)
        await until(lambda: RUNS["new"])
        assert len(attempts(await s.records(b))) == 1

    play(script, Post)


async def hosts_killed(s: Scenario, serving: Host, enough: int) -> int:
    """Replace the owner as often as it dies; return how often that was, once nothing happens any more."""
    for killed in range(enough):
        try:
            await until(lambda: s.hosts[serving.incarnation].life.value == "dead", 20.0)  # noqa: B023 - at once
        except TimeoutError:
            return killed
        successor = await s.host()
        await s.fail_over(serving, successor, 0)
        serving = successor
    return enough


def test_a_command_that_kills_its_host_does_not_take_one_after_another() -> None:
    """PR28, M08: after as many attempts as failures would have, it is a dead letter, and what stands behind it runs."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        await accepted_behind_a_slow_one(s, a, ("put", "before"), ("kill", "killer"), ("put", "behind"))
        assert await hosts_killed(s, a, 9) == 1 + 3
        (letter,) = await letters(s)
        assert (letter.reason, letter.attempts, letter.error) == ("killed", 3, "its host died too often while it ran")
        assert await read(s) == ["before", "behind"], "the slow one had only staged its effect"
        assert (RUNS["killer"], RUNS["behind"]) == (1 + 3, 1)

    play(script, Post, tell_attempts_max=3)


async def letters(s: Scenario, shard: int = 0) -> list:
    return [row.letter for row in await dead_letters(s, shard)]


def test_a_timer_whose_tick_kills_its_host_does_not_take_one_after_another() -> None:
    """PR28, M10: the same; a repeating one goes on with its next tick."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = client_of(s, 7, a)
        await c.ask(1, "schedule_what", name="t", ms=1000, what="kill", item="killer")
        await c.ask(2, "schedule", name="u", ms=1000, item="other")
        assert await hosts_killed(s, a, 9) == 1 + 3
        (letter,) = await letters(s)
        assert (letter.reason, letter.attempts, letter.timer) == ("killed", 3, "t")
        assert await read(s) == ["other"]
        assert RUNS["killer"] == 1 + 3

    play(script, Post, tell_attempts_max=3)


@pytest.mark.parametrize("message", [True, False], ids=["message", "tell"])
def test_what_is_sent_again_to_one_host_after_another_does_not_kill_them_all(message: bool) -> None:
    """PR28, M08: it was not accepted when it killed the first; its outbox, or its client, sends it to the next, where the
    entity is in memory already and it could run at once."""

    async def script(s: Scenario) -> None:
        stream = {"sender": 1, "sender_epoch": 5} if message else {}
        killed = 0
        while killed < 9:
            host = await s.host(0)
            process = s.hosts[host.incarnation]
            reader, sender = client_of(s, 7 + killed, host), client_of(s, 6, host, killed + 1)
            reader.call(1, "read")
            await until(lambda: reader.answers(1) or process.life.value == "dead")  # noqa: B023 - at once
            sender.tell(1, "kill", item="killer", attempt=killed + 1, **stream)
            try:
                await until(lambda: process.life.value == "dead", 20.0)  # noqa: B023 - at once
            except TimeoutError:
                break
            await s.condemn(host)
            killed += 1
        assert killed == 1 + 3
        (letter,) = await letters(s)
        assert (letter.reason, letter.attempts) == ("killed", 3)
        assert await read(s) == []

    play(script, Post, tell_attempts_max=3)


FAR = next(f"far{n}" for n in range(99) if shard_of(f"far{n}", 2) != shard_of("a", 2))


def test_a_run_that_only_found_no_room_for_what_it_sends_was_no_attempt() -> None:
    """PR28: it neither failed nor ended its host, however often that was; also of a recovered entry, and of a timer that
    was due before the takeover, whose attempts are committed before they run."""

    async def script(s: Scenario) -> None:
        near = shard_of("a", 2)
        a, b = await s.host(near), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        await c.ask(1, "send", to=FAR, items=["nobody owns its shard: the outbox is full"])
        await c.ask(2, "schedule_passing_on", name="t", ms=100, item="ticked", to=FAR)
        other.call(1, "put_slowly", item="slow", seconds=5.0)
        c.tell(3, "pass_on", item="told", to=FAR)
        await c.accepted(3)
        await asyncio.sleep(1)
        await s.fail_over(a, b, near)
        await until(lambda: RUNS["told"] >= 9 and RUNS["ticked"] >= 9)
        assert await letters(s, near) == []
        await s.give(b, 1 - near)
        await until(lambda: RUNS["told passed on"] and RUNS["ticked passed on"])
        assert sorted(await read(s)) == ["ticked", "told"]
        assert await letters(s, near) == []

    play(script, Post, tell_attempts_max=3, outbox_messages_max=1, shards=2)


def test_a_recovered_entry_whose_entity_cannot_be_activated_is_counted_too() -> None:
    """PR28, M08: it never gets to its run, where an attempt would be counted; it is paused and set aside as others are."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await accepted_behind_a_slow_one(s, a, ("put", "x"))
        Post.broken = True
        await s.fail_over(a, b, 0)
        await until(lambda: b.shards[0].dead_letters and b.commits.committed == b.commits.staged)
        (letter,) = await letters(s)
        assert (letter.reason, letter.attempts) == ("failed", 3)
        assert "could not be activated" in letter.error

    try:
        play(script, Post, tell_attempts_max=3)
    finally:
        Post.broken = False


def test_a_killer_waits_while_there_is_no_room_to_bury_it() -> None:
    """PR28: at the bound of dead letters it is not run again for want of a place."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        await client_of(s, 6, a).ask(1, "put", id="b", item="x")
        c = client_of(s, 5, a)
        c.tell(1, "refuse", id="b", item="fills the dead letters")
        await c.accepted(1)
        await accepted_behind_a_slow_one(s, a, ("kill", "killer"))
        assert await hosts_killed(s, a, 9) == 1 + 3

    play(script, Post, tell_attempts_max=3, dead_letters_max=1)


# ---- rule 13: a release takes what is owed along


@pytest.mark.parametrize("rolled_back", [False, True], ids=["released", "rolled back"])
def test_a_release_takes_along_what_runs_waits_is_paused_and_is_only_stored(rolled_back: bool) -> None:
    """PR13, M05, S08: each sender's commands run in order, at the next owner or, when the release is given up at its
    deadline, here; none is lost or doubled."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        clients = [client_of(s, number, a) for number in (7, 8, 9)]
        other = client_of(s, 6, a)
        other.call(1, "put_slowly", id="b", item="holds up", seconds=20.0 if rolled_back else 3.0)
        clients[0].tell(1, "fail_slowly", item="7.1", seconds=1.0, times=2)
        await clients[0].accepted(1)
        for number in range(2, 8):
            for c in clients:
                c.tell(number, "put", item=f"{c.client}.{number}", prev=number - 1 if number > 2 else 0)
                await c.accepted(number)
        await until(lambda: RUNS["7.1"] == 2)
        backlog = a.shards[0].residents["Post", "a"].backlog
        assert backlog is not None
        assert backlog.more
        assert await s.hosts[a.incarnation].run(a.ownership.release(0)) is not rolled_back
        if not rolled_back:
            await s.give(b, 0)
        host = a if rolled_back else b
        await until(lambda: all(RUNS[f"{c.client}.7"] for c in clients))
        items = await read(s)
        for c in clients:
            own = [item for item in items if item.startswith(f"{c.client}.")]
            assert own == [f"{c.client}.{number}" for number in range(1 if c.client == 7 else 2, 8)]
        holdings = host._holdings
        assert (holdings.in_memory, holdings.stored, holdings.bytes) == (0, 0, 0)

    play(script, Post, mailbox_commands_max=4, accepted_in_memory_max=3, mailbox_page=2)


def test_a_command_that_fails_while_a_release_is_under_way_is_tried_again_when_that_is_given_up() -> None:
    """PR13, M08: its pause was over before the release was: it must not be forgotten, nor what waits behind it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        other.call(1, "put_slowly", id="b", item="holds up", seconds=20.0)
        c.tell(1, "fail_slowly", item="x", seconds=2.0, times=1)
        await c.accepted(1)
        await until(lambda: RUNS["x"])
        assert not await s.hosts[a.incarnation].run(a.ownership.release(0))
        assert RUNS["x"] == 1
        await until(lambda: RUNS["x"] == 2)
        c.tell(2, "put", item="y", floor=2)
        await c.accepted(2)
        assert await read(s) == ["x", "y"]

    play(script, Post)


@pytest.mark.parametrize("rolled_back", [False, True], ids=["released", "rolled back"])
def test_what_a_release_lets_in_keeps_its_place_behind_what_was_accepted_before(rolled_back: bool) -> None:
    """PR13, PR23, M01: a handler told an entity of its shard something and asks it now: the release has to let the ask in,
    and the tell, which is only stored since, runs before it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        other = client_of(s, 8, a)
        other.call(1, "put_slowly", id="e", item="slow", seconds=4.0)
        if rolled_back:
            other.call(2, "put_slowly", id="b", item="holds up", seconds=20.0)
        asking = client_of(s, 7, a)
        asking.call(1, "tell_and_ask", to="e", items=["told", "asked"], seconds=2.0)
        await until(lambda: a._holdings.in_memory == 1)
        assert await s.hosts[a.incarnation].run(a.ownership.release(0)) is not rolled_back
        assert (await asking.answer(1))[0] is Status.OK
        if not rolled_back:
            await s.give(b, 0)
        await until(lambda: RUNS["told"])
        assert await read(s, "e") == ["slow", "told", "asked"]

    play(script, Post)


@pytest.mark.parametrize("queued", [False, True], ids=["next", "behind a turn of another shard"])
def test_a_release_waits_for_what_it_let_in_also_when_the_asker_gave_up(queued: bool) -> None:
    """PR13: the only runner is busy, so that the call has not begun when the turn that waited for it ends. It is sent on
    its way, or runs before the release is written; a record that is staged afterwards would stand in a log that nobody
    seals, at a position that the next owner gives to another one."""

    async def script(s: Scenario) -> None:
        asker, asked = [f"e{n}" for n in range(99) if shard_of(f"e{n}", 2) == 0][:2]
        elsewhere = next(f"e{n}" for n in range(99) if shard_of(f"e{n}", 2) == 1)
        a, b = await s.host(0, 1), await s.host()
        c, other = client_of(s, 7, a), client_of(s, 8, a)
        await c.ask(1, "read", id=asked)
        await other.ask(1, "read", id=elsewhere)
        c.call(2, "ask_and_give_up", id=asker, to=asked, item="let in", wait_s=1.0, timeout_s=1.0)
        await until(lambda: a.shards[0].residents["Post", asker].running)
        if queued:
            other.call(2, "put_slowly", id=elsewhere, item="x", seconds=1.5)
        held = s.store_of(a).hold("checkpoint")
        releasing = s.hosts[a.incarnation].run(a.ownership.release(0))
        await held.reached()
        await asyncio.sleep(3)
        held.let_go()
        assert await releasing
        assert (await c.answer(2))[0] is Status.OK
        await s.give(b, 0)
        await asyncio.sleep(1)
        last = (await s.row()).position
        assert [record for record in await s.records(a) if record.shard == 0 and record.position > last] == []
        assert await read(s, asked) == ["let in"] * RUNS["let in"]

    play(script, Post, runners_max=1, shards=2)


def test_an_ask_that_ends_its_hosts_does_not_take_all_of_them() -> None:
    """PR28: nobody counts its runs in the store, since its client knows when it has lost enough: the caller is told that
    its outcome is unknown, and the hosts that are left go on."""

    async def script(s: Scenario) -> None:
        hosts = [await s.host() for _ in range(5)]
        s.start_coordinator()
        cluster = await s.client("caller")
        entity = cluster.entity(Post, "a")
        await entity.put("before")
        with pytest.raises(atoll.OutcomeUnknown, match="3 hosts were lost while it was under way"):
            await entity.kill.using(timeout=600)("x")
        assert RUNS["x"] == 3
        assert await entity.put("after") == 1
        assert sum(s.hosts[host.incarnation].life.value != "dead" for host in hosts) == 2
        await cluster.client.close()

    play(script, Post)
