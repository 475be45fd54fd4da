"""Rule 24: messages between entities, from the commit that they belong to until their receivers took them over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from post import RUNS, Post
from scenario import RawClient, Scenario, play, until

import atoll
from atoll.actors.calls import Status
from atoll.persistence.records import Record, outbox_number, stream_of
from atoll.sharding.hashing import shard_of
from atoll.sharding.host import Host
from atoll.sharding.messages import Answer

SENDER = next(f"s{n}" for n in range(99) if shard_of(f"s{n}", 2) == 0)
SENDER_2 = next(f"t{n}" for n in range(99) if shard_of(f"t{n}", 2) == 0)
RECEIVER = next(f"r{n}" for n in range(99) if shard_of(f"r{n}", 2) == 1)


class Volatile(atoll.Entity, durable=False):
    """Nothing of it is stored."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def fail(self, item: str) -> None:
        RUNS[item] += 1
        raise RuntimeError(f"on purpose: {item}")

    @atoll.command
    def put(self, item: str) -> None:
        RUNS[item] += 1
        self.items.append(item)


class Caller(atoll.Entity):
    """Sends to the volatile ones."""

    @atoll.command
    def send(self, to: str, items: list[str]) -> None:
        volatile = self.context.entity(Volatile, to)
        for item in items:
            self.context.send(volatile.fail if item.startswith("bad") else volatile.put, item)


def play2(script: Any, *kinds: type[atoll.Entity], **settings: Any) -> None:
    play(script, *(kinds or (Post,)), **{"shards": 2, **settings})


async def two(s: Scenario) -> tuple[Host, Host, RawClient]:
    """The sender's host, the receiver's, and a client of the first."""
    a, b = await s.host(0), await s.host(1)
    return a, b, s.raw_client(7, a, kind=Post)


async def read(s: Scenario, id: str = RECEIVER) -> list[str]:
    reader = await s.client("reader")
    items = await reader.entity(Post, id).read()
    await reader.client.close()
    return items


def sent(records: Sequence[Record]) -> list[tuple[int, str]]:
    """(number, item's arguments) of what the records send."""
    return [
        (outbox_number(record.position, index), message.id)
        for record in records
        if record.delivery is not None
        for index, message in enumerate(record.delivery.outbox)
    ]


def acknowledged(records: Sequence[Record]) -> list[int]:
    return [number for record in records if record.delivery is not None for number in record.delivery.delivered]


# ---- the sender


def test_messages_leave_only_after_their_commit() -> None:
    """PR24, M06: what a crash takes back was never sent."""

    async def script(s: Scenario) -> None:
        a, _, c = await two(s)
        held = s.store_of(a).hold("append")
        c.call(1, "send", id=SENDER, to=RECEIVER, items=["x"])
        await held.reached()
        await asyncio.sleep(5)
        assert RUNS["x"] == 0
        held.let_go()
        await until(lambda: RUNS["x"])
        assert await read(s) == ["x"]

    play2(script)


def test_a_message_is_numbered_by_position_and_index_and_acknowledged_in_a_record() -> None:
    """PR24: until that record stands it is in the outbox; afterwards in no table."""

    async def script(s: Scenario) -> None:
        a, _, c = await two(s)
        await c.ask(1, "put", id=SENDER, item="something else")
        await c.ask(2, "send", id=SENDER, to=RECEIVER, items=["x", "y"])
        await until(lambda: RUNS["y"])
        numbers = [outbox_number(2, 0), outbox_number(2, 1)]
        assert sent(await s.records(a)) == [(number, RECEIVER) for number in numbers]
        await until(lambda: not a.shards[0].outbox and not a.shards[0].delivered)
        await until(lambda: a.commits.committed == a.commits.staged)
        assert acknowledged(await s.records(a)) == numbers
        await a.upkeep.checkpoint()
        assert (await s.store.read_pending([0]))[0].outbox == ()

    play2(script)


@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_what_was_not_acknowledged_is_sent_again_by_the_next_owner_and_arrives_once(checkpointed: bool) -> None:
    """PR24, M06: the receiver took it over and its word was lost with the sender: it knows the number."""

    async def script(s: Scenario) -> None:
        a, _, c = await two(s)
        await c.ask(1, "send", id=SENDER, to=RECEIVER, items=["x", "y"])
        await until(lambda: RUNS["y"])
        assert acknowledged(await s.records(a)) == []
        if checkpointed:
            await a.upkeep.checkpoint()
        d = await s.host()
        await s.fail_over(a, d, 0)
        await until(lambda: not d.shards[0].outbox and not d.shards[0].delivered)
        await until(lambda: d.commits.committed == d.commits.staged)
        assert len(acknowledged(await s.records(d))) == 2
        assert (RUNS["x"], RUNS["y"]) == (1, 1)
        assert await read(s) == ["x", "y"]

    play2(script, delivered_flush_s=30.0)


@pytest.mark.parametrize("checkpointed", [True, False], ids=["in the tables", "in the log"])
def test_messages_arrive_in_order_over_failovers_of_sender_and_receiver(checkpointed: bool) -> None:
    """M07, M06, PR24: of each pair of entities, whatever dies in between; each once."""

    async def script(s: Scenario) -> None:
        a, b, _ = await two(s)
        cluster = await s.client("caller")
        everything = [f"{n}" for n in range(40)]
        for number in range(0, 40, 4):
            await cluster.entity(Post, SENDER).send(RECEIVER, everything[number : number + 2])
            await cluster.entity(Post, SENDER_2).send(RECEIVER, everything[number + 2 : number + 4])
            if number in (8, 24):
                d = await s.host()
                if checkpointed:
                    await a.upkeep.checkpoint()
                await s.fail_over(a, d, 0)
                a = d
            if number in (16, 24):
                d = await s.host()
                if checkpointed:
                    await b.upkeep.checkpoint()
                await s.fail_over(b, d, 1)
                b = d
        await until(lambda: not a.shards[0].outbox)
        items = await read(s)
        assert sorted(items) == sorted(everything)
        for own in ((0, 1), (2, 3)):
            of_one = [int(item) for item in items if int(item) % 4 in own]
            assert of_one == sorted(of_one)
        await cluster.client.close()

    play2(script)


# ---- the receiver


def message(c: RawClient, number: int, item: str, *, epoch: int = 5, what: str = "put", **more: Any) -> None:
    """Let a message to `a` arrive, from the shard that it lies in itself."""
    c.tell(number, what, item=item, sender=1, sender_epoch=epoch, **more)


def test_floors_count_per_pair_of_shards_and_what_is_below_is_done() -> None:
    """PR24: else the outbox would wait for ever for what its receiver has forgotten; the stream of another shard, and the
    client whose connection it is, have numbers of their own."""

    async def script(s: Scenario) -> None:
        a = await s.host(1)
        c = s.raw_client(7, a, kind=Post)
        stream = {"id": RECEIVER, "sender": 1, "sender_epoch": 3}
        c.tell(70_000, "put", item="x", floor=70_000, **stream)
        await c.accepted(70_000)
        c.tell(90_000, "put", item="y", floor=90_000, **stream)
        await c.accepted(90_000)
        c.tell(70_000, "put", item="x", floor=70_000, attempt=2, **stream)
        await until(lambda: len(c.answers(70_000)) == 2)
        assert c.answers(70_000)[1][0] is Status.BELOW_FLOOR
        c.tell(5, "put", item="z", **stream | {"sender": 2})
        await c.accepted(5)
        assert await c.ask(1, "read", id=RECEIVER) == ["x", "y", "z"]
        windows = a.shards[1].windows
        assert {client: windows[client].floor for client in windows} == {stream_of(0): 90_000, stream_of(1): 1, 7: 1}

    play2(script)


@pytest.mark.parametrize("planned", [True, False], ids=["handoff", "failover"])
def test_a_message_that_was_taken_over_is_known_to_the_next_owner(planned: bool) -> None:
    """PR24, M06: by its number in the stream, although it comes over another connection."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a, kind=Post)
        message(c, 70_000, "x", floor=70_000)
        await c.accepted(70_000)
        message(c, 70_001, "unchanged", floor=70_000, what="leave_alone")
        await c.accepted(70_001)
        if planned:
            assert await s.hosts[a.incarnation].run(a.ownership.release(0))
            await s.give(b, 0)
        else:
            await s.fail_over(a, b, 0)
        d = s.raw_client(8, b, kind=Post)
        message(d, 70_000, "x", floor=70_000, attempt=2, epoch=6)
        message(d, 70_001, "unchanged", floor=70_000, attempt=2, epoch=6, what="leave_alone")
        await d.accepted(70_000)
        await d.accepted(70_001)
        await asyncio.sleep(1)
        assert (RUNS["x"], RUNS["unchanged"]) == (1, 1)

    play(script, Post)


def test_copies_of_a_former_owner_are_not_answered() -> None:
    """PR24: the answer would be the owner's, whose outbox it is now."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        former, owner = s.raw_client(7, a, kind=Post), s.raw_client(8, a, kind=Post)
        message(owner, 70_000, "x", epoch=6)
        await owner.accepted(70_000)
        message(former, 70_000, "x", epoch=5)
        message(former, 70_001, "late", epoch=5)
        await asyncio.sleep(1)
        assert former.heard[1:] == []
        assert RUNS["late"] == 0
        message(owner, 70_001, "late", epoch=6)
        await owner.accepted(70_001)
        assert await owner.ask(1, "read") == ["x", "late"]

    play(script, Post)


def test_a_message_whose_predecessor_to_its_entity_is_unknown_waits_for_it() -> None:
    """M07, PR24: order within a stream, as for a client's commands."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a, kind=Post)
        message(c, 70_001, "second", floor=70_000, prev=70_000)
        message(c, 70_000, "first", floor=70_000)
        message(c, 70_001, "second", floor=70_000, prev=70_000, attempt=2)
        await c.accepted(70_001)
        assert await c.ask(1, "read") == ["first", "second"]

    play(script, Post)


def test_a_stream_that_remembers_too_much_is_held_and_its_connection_stays() -> None:
    """PR24: several owners, one after the other, ran ahead of a message that still waits: the newest is told to come
    again, and what it carries for others arrives."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a, kind=Volatile)
        message(c, 1, "put first", floor=1, id="b")
        await c.accepted(1)
        for number in range(2, 9):
            message(c, number, f"{number}", floor=1, id="b")
            await c.accepted(number)
        message(c, 9, "too many", floor=1, id="b")
        assert (await c.answer(9))[0] is Status.OVERLOADED
        assert not c.closed
        message(c, 9, "too many", floor=3, id="b", attempt=2)
        await until(lambda: c.answers(9)[-1][0] is Status.OK)

    play(script, Volatile, shard_window=8)


# ---- what receivers cannot do


def test_a_message_that_nobody_can_run_is_a_dead_letter_at_once() -> None:
    """M08: its sender has long committed: there is nobody to tell. What came after it goes on."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a, kind=Post)
        message(c, 70_000, "x", what="no_such_command")
        message(c, 70_001, "y", what="read")
        message(c, 70_002, "z")
        for number in (70_000, 70_001, 70_002):
            await c.accepted(number)
        await a.upkeep.checkpoint()
        letters = [row.letter for row in await s.store.read_dead_letters(0)]
        assert [(letter.method, letter.reason) for letter in letters] == [
            ("no_such_command", "invalid"),
            ("read", "invalid"),
        ]
        assert await c.ask(1, "read") == ["z"]

    play(script, Post)


def test_a_message_that_fails_at_an_entity_without_a_store_is_a_dead_letter() -> None:
    """M08, PR24: it cannot be tried again, and its stream does not wait for it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host(1)
        c = s.raw_client(7, a, kind=Caller)
        await c.ask(1, "send", id=SENDER, to=RECEIVER, items=["bad", "good"])
        await until(lambda: RUNS["good"] and not a.shards[0].outbox)
        assert (RUNS["bad"], RUNS["good"]) == (1, 1)
        await b.upkeep.checkpoint()
        (row,) = await s.store.read_dead_letters(1)
        assert (row.kind, row.letter.reason) == ("Volatile", "failed")
        assert "on purpose: bad" in row.letter.error

    play2(script, Caller, Volatile)


# ---- bounds


def test_a_full_outbox_refuses_turns_that_send_and_takes_them_later_in_order() -> None:
    """PR24: nothing of a refused turn is kept; its client sends it again, and after it what came behind it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        cluster = await s.client("caller")
        post = cluster.entity(Post, SENDER)
        await post.send(RECEIVER, ["0", "1"])
        with pytest.raises(atoll.Overloaded, match="outbox is full"):
            await post.send.using(fail_fast=True)(RECEIVER, ["never"])
        calls = [asyncio.ensure_future(post.pass_on.using(timeout=900)(str(n), RECEIVER)) for n in range(2, 6)]
        calls.append(asyncio.ensure_future(post.put.using(timeout=900)("behind")))
        await asyncio.sleep(5)
        assert not any(call.done() for call in calls)
        assert (a._staging.messages, a._staging.room) == (2, 0)
        await s.give(await s.host(), 1)
        await asyncio.gather(*calls)
        assert await read(s, SENDER) == ["2", "3", "4", "5", "behind"]
        await until(lambda: RUNS["5 passed on"])
        assert await read(s) == ["0", "1", *(f"{n} passed on" for n in range(2, 6))]
        await until(lambda: a._staging.messages == 0)
        assert a._staging.bytes == 0
        await cluster.client.close()

    play2(script, outbox_messages_max=2, command_timeout_s=900.0)


def test_a_full_outbox_does_not_wait_for_receivers_that_wait_for_it() -> None:
    """PR24: what they are sent they cannot run, since they send something themselves; so it is taken over when it comes
    again, and waits there: the outbox has room again."""

    async def script(s: Scenario) -> None:
        a = await s.host(0, 1)
        c = s.raw_client(7, a, kind=Post)
        await c.ask(1, "read", id=RECEIVER)
        await c.ask(1, "fan_out", id=SENDER, items=["x", "y", "z"], through=RECEIVER, to=SENDER_2)
        await until(lambda: RUNS["z passed on"])
        assert await read(s) == ["x", "y", "z"]
        assert await read(s, SENDER_2) == ["x passed on", "y passed on", "z passed on"]
        await until(lambda: a._staging.messages == 0)
        assert (a._holdings.in_memory, a._staging.room) == (0, 3)

    play2(script, outbox_messages_max=3)


def test_a_full_outbox_does_not_wait_for_a_mailbox_that_is_full_of_what_sends() -> None:
    """PR24, M05: neither its memory nor its share of the store has room for what the outbox holds, and what stands there
    sends something itself: it may, a little beyond the bound, so that one after another comes in."""

    async def script(s: Scenario) -> None:
        a = await s.host(0, 1)
        c, d = s.raw_client(7, a, kind=Post), s.raw_client(8, a, kind=Post)
        await c.ask(5, "read", id=RECEIVER)
        d.call(1, "put_slowly", id=RECEIVER, item="slow", seconds=2.0)
        await until(lambda: RUNS["slow"])
        told = [f"told {n}" for n in range(4)]
        for number, item in enumerate(told, 1):
            c.tell(number, "pass_on", id=RECEIVER, prev=number - 1, item=item, to=SENDER_2)
        await c.accepted(4)
        sent = [f"sent {n}" for n in range(3)]
        await d.ask(2, "fan_out", id=SENDER, items=sent, through=RECEIVER, to=SENDER_2)
        assert a._staging.room == 0
        await until(lambda: all(RUNS[f"{item} passed on"] for item in [*told, *sent]))
        items = await read(s)
        assert [item for item in items if item in told] == told
        assert [item for item in items if item in sent] == sent
        assert await read(s, SENDER_2) == [f"{item} passed on" for item in items if item != "slow"]
        await until(lambda: a._staging.messages == 0)
        assert (a._holdings.in_memory, a._holdings.stored, a._staging.room) == (0, 0, 3)

    play2(script, outbox_messages_max=3, mailbox_commands_max=2, mailbox_stored_max=2)


def test_an_answer_to_a_message_names_its_stream() -> None:
    """PR24: the courier has many to one shard."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a, kind=Post)
        message(c, 70_000, "x")
        await c.accepted(70_000)
        (answer,) = [heard for heard in c.heard if isinstance(heard, Answer)]
        assert (answer.shard, answer.number, answer.sender) == (0, 70_000, 1)

    play(script, Post)
