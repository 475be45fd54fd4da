"""Rules 19 to 22: recorded replies, floors, repeats and order, over failovers and handoffs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from scenario import Box, Ledger, Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.sharding.host import Host
from atoll.sharding.messages import OutOfOrder

BOTH = pytest.mark.parametrize("planned", [True, False], ids=["handoff", "failover"])


async def move(s: Scenario, source: Host, target: Host, *, planned: bool) -> None:
    if planned:
        assert await s.hosts[source.incarnation].run(source.ownership.release(0))
        await s.give(target, 0)
    else:
        await s.fail_over(source, target, 0)


# ---- rule 19: recorded replies and floors


@BOTH
@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_recorded_replies_move_with_the_shard(planned: bool, checkpointed: bool) -> None:
    """PR19, M02: every number at or above the floor is known to the next owner, with the reply that it had."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        for number in range(1, 9):
            await c.ask(number, "put", item=f"i{number}", floor=max(1, number - 3))
        if checkpointed:
            await a.upkeep.checkpoint()
        await move(s, a, b, planned=planned)
        d = s.raw_client(7, b, 2)
        for number in range(5, 9):
            assert await d.ask(number, "put", item=f"i{number}", floor=5, attempt=2) == number - 1
        assert await d.ask(9, "read", floor=5) == [f"i{number}" for number in range(1, 9)]

    play(script)


@BOTH
def test_a_very_late_copy_below_the_floor_is_dropped_by_the_next_owner_too(planned: bool) -> None:
    """J17, PR19: the client has long had its answer; its memory is gone, the floor in the records is what is left."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="once")
        await c.ask(2, "put", id="other", item="later", floor=2)
        await move(s, a, b, planned=planned)
        late = s.raw_client(7, b, 2)
        late.call(1, "put", item="once", floor=1)
        assert (await late.answer(1))[0] is Status.BELOW_FLOOR
        assert await late.ask(3, "read", floor=1) == ["once"]

    play(script)


def test_raising_the_floor_forgets_in_memory_and_in_the_tables() -> None:
    """PR19, J17: what a client's floor has passed is kept nowhere."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 6):
            await c.ask(number, "put", item="x")
        await a.upkeep.checkpoint()
        (row,) = await s.store.read_clients(0)
        assert [number for number, _ in row.replies] == [1, 2, 3, 4, 5]
        await c.ask(6, "put", item="x", floor=5)
        assert len(a.shards[0].windows[7]) == 2
        await a.upkeep.checkpoint()
        (row,) = await s.store.read_clients(0)
        assert (row.floor, [number for number, _ in row.replies]) == (5, [5, 6])

    play(script)


def test_a_command_that_hangs_bounds_what_is_kept_of_the_others() -> None:
    """J17: the floor stands at the hanging one; the client may run a window ahead and no further: one that does is cut
    off, and the replies that are kept never exceed the window."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", id="hangs", item="x", seconds=10_000.0, remaining_ms=10**8)
        for number in range(2, 17):
            await c.ask(number, "put", item="x", floor=1)
        assert len(a.shards[0].windows[7]) == 16
        c.call(17, "put", item="too far", floor=1)
        assert "17 runs more than 16 ahead" in c.closed
        await a.upkeep.checkpoint()
        (row,) = await s.store.read_clients(0)
        assert len(row.replies) == 15

    play(script, shard_window=16)


def test_a_client_keeps_to_its_window_while_one_command_hangs() -> None:
    """J17: the client library holds back what would run too far ahead; everything is done once the hanging one ends."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        hanging = asyncio.ensure_future(cluster.entity(Box, "hangs").put_slowly.using(timeout=900)("x", 60.0))
        others = [
            asyncio.ensure_future(cluster.entity(Box, f"e{n % 5}").put.using(timeout=900)(f"i{n}")) for n in range(100)
        ]
        await asyncio.sleep(30)
        done = sum(other.done() for other in others)
        assert done == s.settings.shard_window - 1
        (window,) = a.shards[0].windows.values()
        assert len(window) <= s.settings.shard_window
        assert await hanging == 0
        await asyncio.gather(*others)
        await cluster.client.close()

    play(script, shard_window=16, command_timeout_s=900.0)


# ---- rule 20: replies without effect


@BOTH
def test_a_refusal_rides_in_the_clients_next_record(planned: bool) -> None:
    """PR20: it cost no append of its own; but once a later command is recorded, the next owner knows both."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        c.call(2, "put_if_even", item="refused")
        assert (await c.answer(2))[0] is Status.REJECTED
        appends = s.store_of(a).names().count("append")
        assert appends == 1
        await c.ask(3, "put", item="y")
        await move(s, a, b, planned=planned)
        d = s.raw_client(7, b, 2)
        d.call(2, "put_if_even", item="refused", attempt=2)
        assert (await d.answer(2))[0] is Status.REJECTED, "it would be accepted now"
        assert await d.ask(4, "read") == ["x", "y"]

    play(script)


@BOTH
@pytest.mark.parametrize("method", ["put_if_even", "put_and_fail", "count"])
def test_a_first_attempt_that_comes_after_its_retry_was_answered_without_effect_does_nothing(
    method: str, planned: bool
) -> None:
    """M19, PR20: the reply of a repeat is recorded although it changed nothing: the first copy may still be under way, to
    this owner or the next, and the caller has been told that nothing happened."""

    async def script(s: Scenario) -> None:
        arguments = {} if method == "count" else {"item": "never"}
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        c.call(2, method, attempt=2, **arguments)
        first = await c.answer(2)
        other = s.raw_client(8, a)
        await other.ask(1, "put", item="y")
        await move(s, a, b, planned=planned)
        late = s.raw_client(7, b, 2)
        late.call(2, method, attempt=1, **arguments)
        assert await late.answer(2) == first
        assert await late.ask(3, "read") == ["x", "y"]

    play(script)


def test_a_first_attempt_after_its_retry_was_refused_for_its_deadline_does_nothing() -> None:
    """M19, PR20: also the host's own refusals count as answers."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=5.0)
        c.call(2, "put", item="never", prev=1, attempt=2, remaining_ms=1_000)
        assert (await c.answer(2))[0] is Status.DEADLINE_EXCEEDED
        assert await c.answer(1) == (Status.OK, 0)
        await s.fail_over(a, b, 0)
        late = s.raw_client(7, b, 2)
        late.call(2, "put", item="never", attempt=1)
        assert (await late.answer(2))[0] is Status.DEADLINE_EXCEEDED
        assert await late.ask(3, "read") == ["slow"]

    play(script)


# ---- rule 21: repeats


def test_a_repeat_finds_its_first_copy_wherever_that_is() -> None:
    """PR21: queued, running, staged, recorded: never a second effect, and the answer goes to the newest connection, after
    the commit."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=2.0)
        c.call(2, "put", item="queued", prev=1)
        await asyncio.sleep(1)
        d = s.raw_client(7, a, 2)
        d.call(1, "put_slowly", item="slow", seconds=2.0, attempt=2)
        d.call(2, "put", item="queued", prev=1, attempt=2)
        held = s.store_of(a).hold("append")
        await held.reached()
        await until(lambda: a.commits.staged == 2)
        e = s.raw_client(7, a, 3)
        e.call(1, "put_slowly", item="slow", seconds=2.0, attempt=3)
        e.call(2, "put", item="queued", prev=1, attempt=3)
        await asyncio.sleep(30)
        assert e.answers(1) == e.answers(2) == [], "staged, not committed"
        held.let_go()
        assert await e.answer(1) == (Status.OK, 0)
        assert await e.answer(2) == (Status.OK, 1)
        assert c.answers(1) == []
        e.call(2, "put", item="queued", prev=1, attempt=4)
        await until(lambda: len(e.answers(2)) == 2)
        assert e.answers(2)[1] == (Status.OK, 1)
        assert await e.ask(3, "read") == ["slow", "queued"]

    play(script)


def test_an_older_connection_is_not_listened_to_any_more() -> None:
    """PR22, M19: what still lies in its buffers must not overtake what the client sent over the new one."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        old = s.raw_client(7, a, 1)
        new = s.raw_client(7, a, 2)
        assert old.closed
        old.call(1, "put", item="late")
        assert await new.ask(2, "put", item="new") == 0
        assert old.answers(1) == []
        third = s.raw_client(7, a, 1)
        assert "newer connection" in third.closed
        assert await new.ask(3, "read") == ["new"]

    play(script)


@pytest.mark.parametrize("kind", [Box, Ledger])
def test_one_command_id_from_two_clients_at_once_and_again_later_is_one_effect(kind: type) -> None:
    """M03, PR21: both wait in the same mailbox, another comes when the first is staged, and one a minute later finds it in
    the tables; then one at the next owner. All get the first one's reply."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        x, y = s.raw_client(7, a), s.raw_client(8, a)
        await x.ask(1, "put", kind=kind, item="before")
        held = s.store_of(a).hold("append")
        order = {"kind": kind, "item": "order", "command_id": "order-17"}
        x.call(2, "put", **order)
        y.call(1, "put", **order)
        await held.reached()
        y.call(2, "put", prev=1, **order)
        await asyncio.sleep(1)
        assert x.answers(2) == y.answers(1) == y.answers(2) == []
        held.let_go()
        assert [await x.answer(2), await y.answer(1), await y.answer(2)] == [(Status.OK, 1)] * 3
        await a.upkeep.checkpoint()
        assert not a.shards[0].named, "the tables have it"
        await asyncio.sleep(60)
        assert await y.ask(3, "put", **order) == 1
        await s.fail_over(a, b, 0)
        z = s.raw_client(9, b)
        assert await z.ask(1, "put", **order) == 1
        assert await z.ask(2, "read", kind=kind) == ["before", "order"]

    play(script)


def test_a_command_id_is_known_to_the_next_owner_before_any_checkpoint() -> None:
    """M03, PR21: it stands in the log's tail alone."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        s.store_of(b).hold("checkpoint")
        c = s.raw_client(7, a)
        assert await c.ask(1, "put", item="x", command_id="order") == 0
        await s.fail_over(a, b, 0)
        assert await s.raw_client(8, b).ask(1, "put", item="x", command_id="order") == 0
        assert await s.raw_client(8, b, 2).ask(2, "read") == ["x"]

    play(script)


@pytest.mark.parametrize("method", ["put_if_even", "put_and_fail"])
def test_a_command_that_failed_runs_again_under_its_id(method: str) -> None:
    """M04: a refusal or a failure is no effect that could be doubled: who repeats it later may succeed."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        for number in (2, 3):
            c.call(number, method, item="again", command_id="order")
            assert (await c.answer(number))[0] in (Status.REJECTED, Status.HANDLER_FAILED)
        await c.ask(4, "put", item="y")
        assert await c.ask(5, "put", item="again", command_id="order") == 2
        assert await c.ask(6, "put", item="again", command_id="order") == 2

    play(script)


# ---- rule 22: order


def test_a_command_whose_predecessor_is_unknown_waits_for_it() -> None:
    """PR22: told to come again, in order; nothing is kept of it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(2, "put", item="second", prev=1)
        assert c.told(OutOfOrder) == [2]
        c.call(1, "put", item="first", attempt=2)
        c.call(2, "put", item="second", prev=1, attempt=2)
        assert await c.answer(2) == (Status.OK, 1)
        assert await c.ask(3, "read") == ["first", "second"]

    play(script)


def test_a_bounce_from_a_full_mailbox_keeps_the_order_of_what_follows() -> None:
    """PR22: room appears between two commands of a client: the second must not take it before the first."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c, other = s.raw_client(7, a), s.raw_client(8, a)
        other.call(1, "put_slowly", item="slow", seconds=1.0)
        await asyncio.sleep(0.1)
        for number in (2, 3):
            other.call(number, "put", item=f"o{number}", prev=number - 1)
        c.call(1, "put", item="first")
        assert c.answers(1) == [(Status.OVERLOADED, None)]
        await other.answer(3)
        c.call(2, "put", item="second", prev=1)
        assert c.told(OutOfOrder) == [2]
        c.call(1, "put", item="first", attempt=2)
        c.call(2, "put", item="second", prev=1, attempt=2)
        await c.answer(2)
        assert await c.ask(3, "read") == ["slow", "o2", "o3", "first", "second"]

    play(script, mailbox_commands_max=2)


@pytest.mark.parametrize("in_flight", [1, 10, 300, 1000])
def test_one_senders_commands_run_in_the_order_sent(in_flight: int) -> None:
    """M01, PR22: with 1 to 1,000 in flight, over a handoff and a failover in the middle."""

    async def script(s: Scenario) -> None:
        a, b, d = await s.host(0), await s.host(), await s.host()
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        total = max(100, in_flight * 2)
        places: list[int] = []
        room = asyncio.Semaphore(in_flight)

        async def one(number: int) -> None:
            place = await box.put.using(timeout=900)(str(number))
            assert place == number
            places.append(place)
            room.release()

        tasks = []
        for number in range(total):
            await room.acquire()
            tasks.append(asyncio.ensure_future(one(number)))
            await asyncio.sleep(0)
            if number == total // 4:
                s.hosts[a.incarnation].run(a.ownership.release(0))
                await until(lambda: 0 not in a.shards)
                await s.give(b, 0)
            if number == total // 2:
                await s.fail_over(b, d, 0)
        await asyncio.gather(*tasks)
        assert len(places) == total
        assert await box.read() == [str(number) for number in range(total)]
        await cluster.client.close()

    play(script, command_timeout_s=900.0)


def test_many_senders_at_a_small_mailbox_keep_their_orders() -> None:
    """PR22, M01: the mailbox bounces some of nearly every burst; each client's own order holds."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        clusters = [await s.client(f"caller-{n}") for n in range(4)]

        async def sender(name: int) -> None:
            box = clusters[name].entity(Box, "a")
            await asyncio.gather(*(box.put.using(timeout=900)(f"{name}.{number}") for number in range(40)))

        await asyncio.gather(*(sender(name) for name in range(4)))
        items = await clusters[0].entity(Box, "a").read()
        assert len(items) == 160
        for name in range(4):
            own = [item for item in items if item.startswith(f"{name}.")]
            assert own == [f"{name}.{number}" for number in range(40)]
        for cluster in clusters:
            await cluster.client.close()

    play(script, mailbox_commands_max=3, command_timeout_s=900.0)


def test_a_lost_connection_neither_loses_nor_reorders_nor_doubles() -> None:
    """M01, M02, PR22: everything unanswered is sent again, in order, before anything new."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        tasks = []
        for number in range(200):
            tasks.append(asyncio.ensure_future(box.put.using(timeout=900)(str(number))))
            if number % 20 == 10:
                await asyncio.sleep(0.002)
                for peer in a._intake.peers():
                    peer.close("the script cuts it")
        assert await asyncio.gather(*tasks) == list(range(200))
        assert await box.read() == [str(number) for number in range(200)]
        await cluster.client.close()

    play(script, command_timeout_s=900.0)


# ---- rule 26: numbers that are given up, IDs that are used twice


def test_a_number_whose_caller_was_told_unknown_is_given_up() -> None:
    """PR26: the floor passes it, so that nothing is kept for ever for a caller who is gone; and it may not act later."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        held = s.store_of(a).hold("append")
        with pytest.raises(atoll.OutcomeUnknown):
            await cluster.entity(Box, "a").put.using(timeout=1.0)("unknown")
        held.let_go()
        assert await cluster.entity(Box, "b").put("x") == 0
        (window,) = a.shards[0].windows.values()
        assert window.floor == 2
        assert len(window) == 1
        await cluster.client.close()

    play(script)


def test_the_same_id_tells_what_became_of_a_command_whose_outcome_was_unknown() -> None:
    """M12, PR26: the deadline passed during the turn; a repeat under the ID waits for it, or finds its reply."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("caller")
        box = cluster.entity(Box, "a")
        with pytest.raises(atoll.OutcomeUnknown):
            await box.put_slowly.using(command_id="order", timeout=1.0)("x", 2.0)
        assert await box.put_slowly.using(command_id="order", timeout=9.0)("x", 2.0) == 0
        with pytest.raises(atoll.OutcomeUnknown):
            await box.put_slowly.using(command_id="other", timeout=1.0)("y", 2.0)
        await asyncio.sleep(5)
        assert await box.put_slowly.using(command_id="other", timeout=1.0)("y", 2.0) == 1
        assert await box.read() == ["x", "y"]
        await cluster.client.close()

    play(script)


def test_a_command_in_the_mailbox_that_was_given_up_does_not_run() -> None:
    """PR26, M12: its client told its caller that the outcome is unknown and went on; when its turn comes nobody wants it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=2.0)
        c.call(2, "put", item="given up", prev=1)
        await asyncio.sleep(1)
        c.call(3, "put", id="b", item="x", floor=3)
        assert await c.ask(4, "read", floor=3) == ["slow"]

    play(script)


@pytest.mark.parametrize("where", ["staged", "committed", "tables", "next owner"])
def test_a_command_id_that_is_used_for_other_work_is_refused(where: str) -> None:
    """PR26: the digest of entity, method and arguments beside the recorded reply tells them apart, wherever it lies."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        held = s.store_of(a).hold("append")
        c.call(1, "put", item="x", command_id="order")
        await held.reached()
        if where != "staged":
            held.let_go()
            await c.answer(1)
        if where == "tables":
            await a.upkeep.checkpoint()
        host = a
        if where == "next owner":
            await s.fail_over(a, b, 0)
            host = b
        d = s.raw_client(8, host)
        d.call(1, "put", item="other", command_id="order")
        d.call(2, "count", command_id="order", prev=1)
        held.let_go()
        assert (await d.answer(1))[0] is Status.INVALID_COMMAND
        assert (await d.answer(2))[0] is Status.INVALID_COMMAND
        assert await d.ask(3, "put", item="x", command_id="order") == 0
        assert await d.ask(4, "put", id="other", item="x", command_id="order") == 0, "per entity"

    play(script)


def test_a_command_id_that_carries_its_age_is_refused_when_it_is_too_old() -> None:
    """PR26: its reply is forgotten, so that nobody can tell whether it ran; a plain one of the same age would run."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        world = s.simulation.world("ids")
        old = atoll.actors.ids.make_command_id(world.wall_ms(), world.entropy(10))
        assert await c.ask(1, "put", item="x", command_id=old) == 0
        await asyncio.sleep(55)
        assert await c.ask(2, "put", item="x", command_id=old) == 0
        await asyncio.sleep(10)
        c.call(3, "put", item="x", command_id=old)
        assert (await c.answer(3))[0] is Status.INVALID_COMMAND
        assert "older than 60 s" in c.heard[-1].payload.decode()  # type: ignore[union-attr] # an answer
        assert await c.ask(4, "read") == ["x"]

    play(script, command_id_retention_s=60.0)


def test_replies_under_command_ids_go_after_their_retention() -> None:
    """PR26: a checkpoint drops what is older, so that they do not gather for ever."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x", command_id="order")
        await a.upkeep.checkpoint()
        assert await s.store.read_named(0, "Box", "a", "order")
        await asyncio.sleep(100)
        await c.ask(2, "put", item="y")
        await a.upkeep.checkpoint()
        assert await s.store.read_named(0, "Box", "a", "order") is None

    play(script, command_id_retention_s=60.0)


def test_payloads_are_what_the_first_answer_was() -> None:
    """M02, PR19: the recorded reply is the encoded one, byte for byte."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        (record,) = await s.records(a)
        assert record.reply is not None
        assert record.reply.payload == msgspec.msgpack.encode(0)
        await s.fail_over(a, b, 0)
        d = s.raw_client(7, b, 2)
        await d.ask(1, "put", item="x", attempt=2)
        assert d.heard[-1].payload == c.heard[-1].payload  # type: ignore[union-attr] # both are answers

    play(script)
