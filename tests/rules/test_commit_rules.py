"""Rules 3 and 5: what an append may carry, and what a record must."""

from __future__ import annotations

import asyncio

import pytest
from scenario import Box, Ledger, Scenario, play, until

from atoll.actors.calls import Status
from atoll.actors.errors import CorruptRecord
from atoll.persistence.records import Record, decode_batch, encode_batch


@pytest.mark.parametrize("lost", ["on the way there", "on the way back"])
def test_an_append_with_an_unknown_outcome_is_repeated_as_it_was(lost: str) -> None:
    """PR03, J03: the same n, the same bytes, however much has been staged since; the next batch waits for it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        store = s.store_of(a)
        (store.lose if lost == "on the way there" else store.lose_reply)("append", 4)
        c = s.raw_client(7, a)
        c.call(1, "put", item="first")
        await until(lambda: "append" in store.names())
        for number in (2, 3, 4):
            c.call(number, "put", item=f"i{number}", prev=number - 1)
        assert [(await c.answer(number))[1] for number in (1, 2, 3, 4)] == [0, 1, 2, 3]
        appends = [args for name, args in store.calls if name == "append"]
        assert [n for _, n, _ in appends] == [1, 1, 1, 1, 1, 2]
        assert len({content for _, n, content in appends if n == 1}) == 1
        assert not a.ended.done()

    play(script)


def test_one_append_is_in_flight_and_the_next_batch_fills_meanwhile() -> None:
    """PR03: nothing is answered before its own append returned, and answers leave in order."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        held = s.store_of(a).hold_reply("append")
        c.call(1, "put", item="first")
        await held.reached()
        for number in range(2, 12):
            c.call(number, "put", item=f"i{number}", prev=number - 1)
        await until(lambda: a.commits.staged == 11)
        await asyncio.sleep(1)
        assert c.heard[1:] == [], "only the table that a new connection is told"
        assert s.store_of(a).names().count("append") == 1
        held.let_go()
        await c.answer(11)
        assert [m.number for m in c.heard[1:]] == list(range(1, 12))  # type: ignore[union-attr] # all are answers
        assert [len(decode_batch(row.content, a.incarnation, row.n)) for row in await s.log(a)] == [1, 10]

    play(script)


def test_callers_time_out_while_an_append_hangs_and_the_work_is_done_all_the_same() -> None:
    """PR03, PR26: `OutcomeUnknown` meanwhile; the append is repeated until its outcome is known."""

    async def script(s: Scenario) -> None:
        import atoll

        a = await s.host(0)
        cluster = await s.client("caller")
        s.store_of(a).lose_reply("append", 6)
        with pytest.raises(atoll.OutcomeUnknown):
            await cluster.entity(Box, "a").put.using(timeout=0.02)("x")
        assert await cluster.entity(Box, "a").put("y") == 1
        await cluster.client.close()

    play(script)


def test_a_record_says_all_that_recovery_needs() -> None:
    """PR05: kind, schema version, shard, position, version of the entity, client, number, floor and reply."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(3, "put", item="x", floor=3)
        await c.ask(4, "put", kind=Ledger, item="y", floor=4)
        plain, sourced = await s.records(a)
        assert (plain.kind, plain.id, plain.shard, plain.position, plain.seq) == ("Box", "a", 0, 1, 1)
        assert plain.state is not None
        assert plain.state.version == 1
        assert (plain.client, plain.number, plain.floor) == (7, 3, 3)
        assert plain.reply is not None
        assert plain.reply.status == Status.OK
        assert (sourced.kind, sourced.position, sourced.seq, sourced.floor) == ("Ledger", 2, 1, 4)
        assert [(event.name, event.version) for event in sourced.events] == [("Put", 1)]

    play(script)


def test_a_batch_proves_itself_and_its_place() -> None:
    """PR05, J14: any changed bit, and any other row than its own, is reported with the place."""
    blob = encode_batch([Record(0, 1, "Box", "a", 1, client=7, number=3, floor=2)], 4, 9)
    assert decode_batch(blob, 4, 9)[0].floor == 2
    for byte in range(len(blob)):
        for bit in range(8):
            broken = bytearray(blob)
            broken[byte] ^= 1 << bit
            with pytest.raises(CorruptRecord, match="log 4, row 9"):
                decode_batch(bytes(broken), 4, 9)
    for incarnation, n in ((4, 8), (5, 9)):
        with pytest.raises(CorruptRecord):
            decode_batch(blob, incarnation, n)


def test_commits_wait_when_too_much_is_not_in_the_tables() -> None:
    """PR08: at the bound on what a failover would have to read, commits wait for the checkpoint; then they go on."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        held = s.store_of(a).hold("checkpoint")
        for number in range(1, 31):
            c.call(number, "put", item=f"i{number}", prev=number - 1)
        await held.reached()
        await asyncio.sleep(5)
        answered = [number for number in range(1, 31) if c.answers(number)]
        assert answered == list(range(1, 11)), "five records a batch, ten before the tables have any"
        held.let_go()
        assert (await c.answer(30))[1] == 29

    play(script, batch_commands_max=5, checkpoint_commands=5, uncheckpointed_commands_max=10)
