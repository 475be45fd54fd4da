"""Rules 4 and 6 to 10: what reaches the tables, in which order, and how an entity is read back from tables and log."""

from __future__ import annotations

import pytest
from scenario import Box, Ledger, RawClient, Scenario, play, until

from atoll.actors.calls import Status
from atoll.actors.errors import Fenced
from atoll.persistence.spi import ShardState
from atoll.sharding.host import Host

KINDS = pytest.mark.parametrize("kind", [Box, Ledger])


async def passivated(host: Host, kind: type = Box, id: str = "a") -> None:
    """Wait until an entity has left a host's memory (the scenario's idle time is short)."""
    shard = host.shards[0]
    await until(lambda: (kind.__name__, id) not in shard.residents)


# ---- rule 4: when log rows may go


def test_a_checkpoint_lets_go_of_its_log_rows_but_not_of_those_that_came_meanwhile() -> None:
    """PR04, J16: a row that was committed while the checkpoint was written is not in the tables, so it stays."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 5):
            await c.ask(number, "put", item=f"i{number}")
        held = s.store_of(a).hold("checkpoint")
        checkpoint = s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        await held.reached()
        for number in range(5, 9):
            await c.ask(number, "put", item=f"i{number}")
        held.let_go()
        await checkpoint
        assert [row.n for row in await s.log(a)] == [5, 6, 7, 8]
        b = await s.host()
        await s.fail_over(a, b, 0)
        assert await s.raw_client(7, b, 2).ask(9, "read") == [f"i{n}" for n in range(1, 9)]

    play(script)


def test_a_sealed_log_is_kept_until_the_last_shard_in_it_is_past_it() -> None:
    """PR04, J16: two shards stand in one log; the new owner of one of them checkpoints long before the other is taken."""

    async def script(s: Scenario) -> None:
        a = await s.host(0, 1)
        ids = {1: "a", 0: "d"}
        c = s.raw_client(7, a)
        for number, id in enumerate(ids.values(), 1):
            await c.ask(number, "put", id=id, item=id, floor=1)
        b, d = await s.host(), await s.host()
        await s.fail_over(a, b, 0)
        await until(lambda: b.upkeep.checkpoints)
        await b.upkeep.checkpoint()
        assert [row.n for row in await s.log(a)] == [1, 2], "shard 1 is not in the tables yet"
        await s.give(d, 1)
        assert await s.raw_client(7, d, 2).ask(5, "read", id=ids[1]) == [ids[1]]
        await until(lambda: d.upkeep.checkpoints)
        await d.upkeep.checkpoint()
        assert [row.n for row in await s.log(a)] == [2], "all but the newest row"
        assert (await s.row(0)).owners == (b.incarnation,)

    play(script, shards=2)


def test_a_host_that_lost_a_shard_does_not_let_go_of_the_log_that_its_successor_will_read() -> None:
    """PR04: it was relieved while it slept, notices that, and goes on with its background work before it is told to end.
    What it committed is not in the tables: only its log has it."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 4):
            await c.ask(number, "put", item=f"i{number}")
        b = await s.host()
        s.hosts[b.incarnation].pause()
        await s.condemn(a)
        await s.assign(b, 0)
        a.ownership.poke()
        await until(lambda: not a.shards)
        await a.upkeep.checkpoint()
        s.hosts[b.incarnation].resume()
        b.ownership.poke()
        await until(lambda: 0 in b.shards)
        assert await s.raw_client(7, b, 2).ask(4, "read") == ["i1", "i2", "i3"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


def test_a_host_lets_go_of_its_log_again_once_the_successor_is_past_it() -> None:
    """PR04, J16: having lost one shard does not keep the log for ever: the successor's p decides."""

    async def script(s: Scenario) -> None:
        a = await s.host(0, 1)
        c = s.raw_client(7, a)
        await c.ask(1, "put", id="d", item="x")
        await c.ask(1, "put", id="a", item="y")
        s.store_of(a).lose_reply("checkpoint")  # the release takes effect, and the host does not know
        await s.hosts[a.incarnation].run(a.ownership.release(0))
        assert (await s.row(0)).state is ShardState.FREE
        await a.upkeep.checkpoint()
        assert [row.n for row in await s.log(a)] == [2]

    play(script, shards=2)


# ---- rule 6: committed records only


@KINDS
def test_tables_never_show_what_was_staged_and_not_committed(kind: type) -> None:
    """PR06: a checkpoint runs while an append hangs; the host dies with it. The tables have nothing of it: no state, no
    history, no reply, and the next owner runs the command as if it had never come."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", kind=kind, item="committed")
        held = s.store_of(a).hold("append")
        c.call(2, "put", kind=kind, item="staged")
        await held.reached()
        await a.upkeep.checkpoint()
        row = await s.store.read_entity(0, kind.__name__, "a")
        assert row is not None
        assert row.seq == 1
        assert len(await s.store.read_history(0)) == (kind is Ledger)
        (client,) = await s.store.read_clients(0)
        assert [number for number, _ in client.replies] == [1]
        assert (await s.row()).position == 1
        b = await s.host()
        await s.fail_over(a, b, 0)
        d = s.raw_client(7, b, 2)
        assert await d.ask(3, "read", kind=kind) == ["committed"]
        assert await d.ask(2, "put", kind=kind, item="staged", attempt=2) == 1

    play(script)


@KINDS
def test_the_recovered_tail_is_the_new_owners_to_write(kind: type) -> None:
    """PR06, J16: entities of the tail that nobody calls reach the tables with the new owner's checkpoint, so that the old
    log can go, and a third owner finds them."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in (1, 2, 3):
            await c.ask(number, "put", kind=kind, id=f"e{number}", item="x", floor=number)
        b = await s.host()
        await s.fail_over(a, b, 0)
        await until(lambda: b.upkeep.checkpoints)
        await until(lambda: "delete_log_rows" in s.store_of(b).names())
        assert (await s.row()).position == 3
        d = await s.host()
        await s.fail_over(b, d, 0)
        e = s.raw_client(7, d, 3)
        assert [await e.ask(10 + n, "read", kind=kind, id=f"e{n}") for n in (1, 2, 3)] == [["x"]] * 3

    play(script)


def test_failovers_in_a_row_before_any_checkpoint_lose_nothing() -> None:
    """J16, PR01, PR06, PR11: the tail stands in two sealed logs, then in three; the last owner reads them all, in order."""

    async def script(s: Scenario) -> None:
        owner = await s.host(0)
        for life in range(1, 5):
            s.store_of(owner).hold("checkpoint")
            c = s.raw_client(7, owner, life)
            for number in (3 * life - 2, 3 * life - 1, 3 * life):
                await c.ask(number, "put", kind=(Box, Ledger)[number % 2], item=f"i{number}", floor=number)
            heir = await s.host()
            await s.fail_over(owner, heir, 0)
            owner = heir
        c = s.raw_client(7, owner, 9)
        assert await c.ask(20, "read", kind=Box) == [f"i{n}" for n in range(2, 13, 2)]
        assert await c.ask(21, "read", kind=Ledger) == [f"i{n}" for n in range(1, 13, 2)]

    play(script)


# ---- rule 7: who may write


def test_a_zombies_checkpoint_changes_nothing_and_costs_it_the_shard() -> None:
    """PR07, S09: refused as a whole, clients' rows too, which no version protects; and the zombie closes the shard."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("checkpoint")
        late = s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        await held.reached()
        b = await s.host()
        await s.condemn(a)
        await s.give(b, 0)
        d = s.raw_client(7, b, 2)
        assert await d.ask(2, "put", item="y", floor=2) == 1
        await b.upkeep.checkpoint()
        before = await s.store.read_clients(0), await s.row(), await s.store.read_entity(0, "Box", "a")
        held.let_go()
        await late
        assert (await s.store.read_clients(0), await s.row(), await s.store.read_entity(0, "Box", "a")) == before
        assert 0 not in a.shards
        assert await d.ask(3, "read") == ["x", "y"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


# ---- rule 8: p last


@KINDS
@pytest.mark.parametrize("transactions", range(4))
def test_a_host_killed_between_two_transactions_of_a_checkpoint_loses_nothing(kind: type, transactions: int) -> None:
    """PR08, J04: whatever part of it is in the tables, p has not moved before the end, and the tail is laid over again."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 16):
            await c.ask(number, "put", kind=kind, id=f"e{number % 5}", item=f"i{number}", floor=number)
        held = s.store_of(a).hold("checkpoint")
        checkpoint = s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        for _ in range(transactions):
            await held.reached()
            held.let_one_go()
        if transactions < 3:
            await held.reached()
        else:
            await checkpoint
        assert checkpoint.done() == (transactions == 3), "two of its transactions have two entities, the last has one"
        assert (await s.row()).position == (15 if transactions == 3 else 0)
        b = await s.host()
        s.store_of(b).hold("checkpoint")
        await s.fail_over(a, b, 0)
        d = s.raw_client(7, b, 2)
        for entity in range(5):
            items = [f"i{n}" for n in range(1, 16) if n % 5 == entity]
            assert await d.ask(100 + entity, "read", kind=kind, id=f"e{entity}", floor=16) == items
            assert await d.ask(200 + entity, "put", kind=kind, id=f"e{entity}", item="more", floor=16) == 3

    play(script, table_write_rows=2)


@KINDS
@pytest.mark.parametrize("transactions", range(3))
def test_an_entity_that_is_activated_in_the_middle_of_a_checkpoint_is_whole(kind: type, transactions: int) -> None:
    """PR08, PR10: its row stands in the tables already, its history not yet; what was committed meanwhile is there too."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in range(1, 16):
            await c.ask(number, "put", kind=kind, id=f"e{number % 5}", item=f"i{number}", floor=number)
        for entity in range(5):
            await passivated(a, kind, f"e{entity}")
        held = s.store_of(a).hold("checkpoint")
        checkpoint = s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        for _ in range(transactions):
            await held.reached()
            held.let_one_go()
        await held.reached()
        for entity in range(5):
            items = [f"i{n}" for n in range(1, 16) if n % 5 == entity]
            assert await c.ask(100 + entity, "read", kind=kind, id=f"e{entity}", floor=16) == items
            assert await c.ask(200 + entity, "put", kind=kind, id=f"e{entity}", item="more", floor=16) == 3
        held.let_go()
        await checkpoint

    play(script, table_write_rows=2, passivate_idle_s=0.5)


# ---- rule 9: a deleted entity keeps its version


@KINDS
def test_the_version_goes_on_after_a_deletion(kind: type) -> None:
    """PR09, J09: also when the deletion is in the tables and the entity was forgotten; else an older row could win."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in (1, 2):
            await c.ask(number, "put", kind=kind, item="old")
        await c.ask(3, "clear", kind=kind)
        await a.upkeep.checkpoint()
        await passivated(a, kind)
        assert await c.ask(4, "put", kind=kind, item="new") == 0
        assert (await s.records(a))[-1].seq == 4
        await a.upkeep.checkpoint()
        row = await s.store.read_entity(0, kind.__name__, "a")
        assert row is not None
        assert (row.seq, row.deleted) == (4, False)
        await passivated(a, kind)
        assert await c.ask(5, "read", kind=kind) == ["new"]

    play(script, passivate_idle_s=0.5)


# ---- rule 10: reading an entity


@KINDS
def test_an_entity_is_read_from_the_overlay_while_the_tables_do_not_have_it(kind: type) -> None:
    """PR10, M13: passivated and called again, with everything of it still in the log alone."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for round_ in range(3):
            assert await c.ask(round_ + 1, "put_and_leave", kind=kind, item=f"i{round_}") == round_
            await passivated(a, kind)
        assert await s.store.read_entity(0, kind.__name__, "a") is None
        assert await c.ask(9, "read", kind=kind) == ["i0", "i1", "i2"]

    play(script)


@KINDS
def test_a_checkpoint_that_ends_while_an_entity_is_read_hides_nothing(kind: type) -> None:
    """PR10: the read of the tables began before the checkpoint and returns after it: the tables did not have it yet, the
    overlay no longer has it. What the overlay held is looked up first."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        for number in (1, 2, 3):
            await c.ask(number, "put", kind=kind, item=f"i{number}")
        await passivated(a, kind)
        held = s.store_of(a).hold_reply("read_entity")
        c.call(4, "read", kind=kind)
        if kind is Ledger:  # a plain entity's newest state is in the overlay as a whole: nothing is read
            await held.reached()
        await a.upkeep.checkpoint()
        held.let_go()
        assert await c.answer(4) == (Status.OK, ["i1", "i2", "i3"])
        assert await c.ask(5, "put", kind=kind, item="i4") == 3

    play(script, passivate_idle_s=0.5)


@KINDS
def test_a_failed_command_puts_the_entity_back_to_what_was_staged(kind: type) -> None:
    """PR10, M09: not to what is committed: the commands before it have run, and their answers are on their way."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        await c.ask(1, "put", kind=kind, item="committed")
        held = s.store_of(a).hold("append")
        c.call(2, "put", kind=kind, item="staged")
        c.call(3, "put_and_fail", kind=kind, item="never", prev=2)
        c.call(4, "put", kind=kind, item="after", prev=3)
        await held.reached()
        await until(lambda: a.commits.staged == 3)
        held.let_go()
        assert [(await c.answer(n))[0] for n in (2, 3, 4)] == [Status.OK, Status.HANDLER_FAILED, Status.OK]
        assert (await c.answer(4))[1] == 2
        assert await c.ask(5, "read", kind=kind) == ["committed", "staged", "after"]

    play(script)


def test_a_fenced_host_ends() -> None:
    """PR01, PR03: the append after the seal meets it; nothing of the batch is answered, and the process ends."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c: RawClient = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        b = await s.host()
        s.store_of(a).hold("shards")  # it does not see that it lost the shard
        await s.condemn(a)
        await s.give(b, 0)
        c.call(2, "put", item="y")
        assert (await a.ended).startswith("fenced")
        assert c.answers(2) == []
        with pytest.raises(Fenced):
            await s.store.append(a.incarnation, 9, b"")

    play(script, lease_renew_s=1000.0, lease_s=3000.0)
