"""Rules 1 and 11 to 13: claim, seal, read, open; and a release that leaves nothing to seal."""

from __future__ import annotations

import asyncio

import pytest
from scenario import Box, Ledger, Scenario, ScriptedStore, play, until
from store_rows import batch, entity

from atoll.actors.calls import Status
from atoll.actors.errors import CorruptRecord, Fenced
from atoll.persistence.memory import MemoryStore
from atoll.persistence.records import Record, decode_batch
from atoll.persistence.recovery import take_over
from atoll.persistence.spi import Assignment, CheckpointEnd, HostState, ShardState, TableWrite
from atoll.sharding.hashing import shard_of
from atoll.sharding.messages import Moved
from atoll.sharding.shard import Phase

# ---- claim, seal, read


async def three_owners() -> tuple[MemoryStore, list[int]]:
    """A shard that two hosts owned one after the other without a checkpoint, and a third one that may claim it."""
    store = MemoryStore()
    await store.open("rules", 1)
    hosts = [await store.register_host(f"{name}:1", "n", None) for name in "abc"]
    for number, host in enumerate(hosts[:2]):
        await store.assign([Assignment(0, number, host)])
        assert await store.claim(host, [(0, number + 1)])
        await store.append(host, 1, batch(host, 1, Record(0, number + 1, "Box", "a", number + 1)))
    await store.assign([Assignment(0, 2, hosts[2])])
    return store, hosts


async def test_every_owner_that_did_not_release_is_sealed() -> None:
    """PR01, J16: not only the last one: the first may still be at work on what it believes its own."""
    store, (a, b, c) = await three_owners()
    (recovered,) = await take_over(store, c, [(0, 3)])
    assert [record.position for record in recovered.tail] == [1, 2]
    for zombie in (a, b):
        with pytest.raises(Fenced):
            await store.append(zombie, 2, batch(zombie, 2, Record(0, 2, "Box", "a", 2)))
    assert {row.incarnation: row.state for row in await store.hosts()} == {
        a: HostState.SEALED,
        b: HostState.SEALED,
        c: HostState.LIVE,
    }


async def test_who_does_not_get_the_shard_seals_nobody() -> None:
    """PR01: only the holder of a fresh claim seals; one that decided long ago and slept must not end a working host."""
    store, (_, b, _) = await three_owners()
    late = await store.register_host("d:1", "n", None)
    for epoch in (2, 3):
        assert await take_over(store, late, [(0, epoch)]) == []
    await store.append(b, 2, batch(b, 2))


async def test_takeover_is_claim_then_seal_then_read() -> None:
    """PR11: in this order and no other, for all the shards together."""
    store, (a, b, c) = await three_owners()
    scripted = ScriptedStore(store)
    await take_over(scripted, c, [(0, 3)])  # type: ignore[arg-type] # a Store by delegation
    assert scripted.calls == [
        ("claim", (c, [(0, 3)])),
        ("seal", (a,)),
        ("seal", (b,)),
        ("shards", ()),
        ("read_log", (a,)),
        ("read_log", (b,)),
        ("read_pending", ([0],)),
        ("read_clients", (0,)),
    ]


@pytest.mark.parametrize("when", ["claimed", "seal on its way", "sealed"])
async def test_what_the_old_owner_does_until_it_is_sealed_is_seen(when: str) -> None:
    """PR11: an append that takes between the claim and the seal is in the tail; one after the seal is fenced. Its
    checkpoints are refused from the moment that the shard was given away."""
    store, (a, b, c) = await three_owners()
    scripted = ScriptedStore(store)
    held = {
        "claimed": lambda: scripted.hold_reply("claim"),
        "seal on its way": lambda: scripted.hold("seal"),
        "sealed": lambda: scripted.hold_reply("seal"),
    }[when]()
    taking = asyncio.ensure_future(take_over(scripted, c, [(0, 3)]))  # type: ignore[arg-type] # a Store by delegation
    await held.reached()
    if when == "sealed":
        with pytest.raises(Fenced):
            await store.append(a, 2, batch(a, 2, Record(0, 3, "Box", "a", 3)))
    else:
        await store.append(b, 2, batch(b, 2, Record(0, 3, "Box", "a", 3)))
    write = TableWrite(0, 2, (entity("a", 9),), end=CheckpointEnd(2))
    assert await store.checkpoint(b, [write]) == {0}
    held.let_go()
    (recovered,) = await taking
    assert [record.position for record in recovered.tail] == ([1, 2] if when == "sealed" else [1, 2, 3])
    assert recovered.position == len(recovered.tail)


async def test_a_hole_in_the_tail_is_not_read_over() -> None:
    """J14, PR11: positions are gapless over all owners; a log that lost rows is reported with shard and position."""
    store, (_, b, c) = await three_owners()
    await store.append(b, 2, batch(b, 2, Record(0, 4, "Box", "a", 4)))
    with pytest.raises(CorruptRecord, match="shard 0: expected position 3"):
        await take_over(store, c, [(0, 3)])


def test_a_commit_that_hangs_during_a_takeover_is_in_or_out_but_never_both() -> None:
    """PR11, M02: the append arrives after the seal: the old owner ends without an answer, and the client's repeat at the
    new owner is the only one that acts."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("append")
        s.store_of(a).hold("shards")
        c.call(2, "put", item="y")
        await held.reached()
        await s.condemn(a)
        await s.give(b, 0)
        d = s.raw_client(7, b, 2)
        assert await d.ask(2, "put", item="y", attempt=2) == 1
        held.let_go()
        await a.ended
        assert c.answers(2) == []
        assert await d.ask(3, "read") == ["x", "y"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


def test_a_commit_whose_answer_was_lost_with_its_host_is_answered_by_the_next_owner() -> None:
    """M02, PR11, PR19: one effect, the same reply, although the second host never ran it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        held = s.store_of(a).hold_reply("append")
        c.call(1, "put", item="x")
        await held.reached()
        assert c.answers(1) == []
        await s.fail_over(a, b, 0)
        d = s.raw_client(7, b, 2)
        assert await d.ask(1, "put", item="x", attempt=2) == 0
        assert await d.ask(2, "read") == ["x"]

    play(script)


def test_nothing_runs_before_the_shard_is_open() -> None:
    """PR11: calls that come while the new owner reads are sent on their way, none is staged."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        await s.raw_client(7, a).ask(1, "put", item="x")
        held = s.store_of(b).hold("read_log")
        s.kill(a)
        await s.condemn(a)
        await s.assign(b, 0)
        await held.reached()
        c = s.raw_client(7, b, 2)
        c.call(2, "put", item="y")
        assert c.told(Moved) == [2]
        held.let_go()
        await until(lambda: 0 in b.shards)
        assert await c.ask(2, "put", item="y", attempt=2) == 1

    play(script)


# ---- release


def test_a_release_leaves_nothing_to_seal() -> None:
    """PR12: the source writes it into the row itself: free, nobody's, p the last position, epoch + 1. The next owner reads
    the tables only, and the source works on."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        for number in range(1, 6):
            await c.ask(number, "put", kind=(Box, Ledger)[number % 2], item=f"i{number}", floor=number)
        before = await s.row()
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        row = await s.row()
        assert (row.state, row.owners, row.owner, row.position) == (ShardState.FREE, (), None, 5)
        assert row.epoch == before.epoch + 1
        s.store_of(b).calls.clear()
        await s.give(b, 0)
        assert not {"seal", "read_log"} & set(s.store_of(b).names())
        d = s.raw_client(7, b, 2)
        assert await d.ask(6, "read", kind=Box) == ["i2", "i4"]
        assert await d.ask(7, "read", kind=Ledger) == ["i1", "i3", "i5"]
        assert {row.incarnation: row.state for row in await s.store.hosts()}[a.incarnation] is HostState.LIVE

    play(script)


def test_a_release_by_who_lost_the_shard_decides_nothing() -> None:
    """PR12: compare-and-set on owner and epoch. What the loser has in memory changes neither row nor tables."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("checkpoint")
        release = s.hosts[a.incarnation].run(a.ownership.release(0))
        await held.reached()
        await s.condemn(a)
        await s.give(b, 0)
        assert await s.raw_client(7, b, 2).ask(2, "put", item="y", floor=2) == 1
        before = await s.row()
        held.let_go()
        assert await release is False
        assert await s.row() == before
        assert await s.raw_client(7, b, 3).ask(3, "read") == ["x", "y"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


def test_a_release_waits_for_the_turn_that_runs_and_sends_the_others_on() -> None:
    """PR13, S09: the running turn ends and its commit is in the tables; what was queued behind it is told `Moved`, and no
    new turn begins."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=2.0)
        c.call(2, "put", item="queued", prev=1)
        await until(lambda: a.shards[0].residents)
        await asyncio.sleep(0.5)
        release = s.hosts[a.incarnation].run(a.ownership.release(0))
        await until(lambda: c.told(Moved))
        c.call(3, "put", item="late", prev=2)
        assert c.told(Moved) == [2, 3]
        assert await release
        assert c.answers(1) == [(Status.OK, 0)], "its commit was waited for"
        assert (await s.row()).position == 1
        await s.give(b, 0)
        d = s.raw_client(7, b, 2)
        assert await d.ask(2, "put", item="queued", floor=2, attempt=2) == 1
        assert await d.ask(3, "put", item="late", floor=2, prev=2, attempt=2) == 2
        assert await d.ask(4, "read") == ["slow", "queued", "late"]

    play(script)


def test_a_release_waits_for_the_commit_of_what_was_staged() -> None:
    """PR13: last staged = last committed = p, also when the store is slow just then."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        held = s.store_of(a).hold("append")
        c.call(1, "put", item="x")
        await held.reached()
        c.call(2, "put", item="y", prev=1)
        await until(lambda: a.commits.staged == 2)
        release = s.hosts[a.incarnation].run(a.ownership.release(0))
        await asyncio.sleep(1)
        assert not release.done()
        held.let_go()
        assert await release
        assert (await s.row()).position == 2
        await s.give(b, 0)
        assert await s.raw_client(7, b, 2).ask(3, "read") == ["x", "y"]

    play(script)


def test_a_turn_that_outlasts_the_deadline_rolls_the_release_back() -> None:
    """PR13: the shard is open again, with everything it had, and takes commands as before."""

    async def script(s: Scenario) -> None:
        a = await s.host(0)
        c = s.raw_client(7, a)
        c.call(1, "put_slowly", item="slow", seconds=5.0)
        await asyncio.sleep(0.5)
        assert await s.hosts[a.incarnation].run(a.ownership.release(0)) is False
        assert a.shards[0].phase is Phase.OPEN
        assert await c.ask(2, "put", id="b", item="other") == 0
        c.call(3, "put", item="after", prev=1)
        assert await c.answer(1) == (Status.OK, 0)
        assert await c.answer(3) == (Status.OK, 1)
        row = await s.row()
        assert (row.state, row.owner) == (ShardState.OWNED, a.incarnation)

    play(script, release_deadline_s=2.0)


def test_a_shard_that_is_lost_during_its_release_is_not_opened_again() -> None:
    """PR13, S09: the source was condemned while a slow turn held its release up. What that turn does stays unwritten, and
    the release says that it did not happen."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        c.call(2, "put_slowly", item="slow", seconds=3.0)
        await asyncio.sleep(0.5)
        release = s.hosts[a.incarnation].run(a.ownership.release(0))
        await s.condemn(a)
        await s.give(b, 0)
        await s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        assert not a.shards
        assert await release is False
        assert not a.shards
        d = s.raw_client(7, b, 2)
        assert await d.ask(2, "put", item="slow", attempt=2) == 1
        await asyncio.sleep(5)
        assert c.answers(2) == []
        assert await d.ask(3, "read") == ["x", "slow"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0, release_deadline_s=2.0)


def test_a_shard_that_is_lost_while_its_release_waits_for_a_commit_is_left_alone() -> None:
    """PR13, PR04: the commit takes, after the shard was given to another host and before that one claims it: the release
    says no, and the record stands in the log, where the new owner finds it."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("append")
        c.call(2, "put", item="y")
        await held.reached()
        release = s.hosts[a.incarnation].run(a.ownership.release(0))
        claim = s.store_of(b).hold("claim")
        await s.condemn(a)
        await s.assign(b, 0)
        await claim.reached()
        await s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        assert not a.shards
        held.let_go()
        assert await release is False
        claim.let_go()
        await until(lambda: 0 in b.shards)
        d = s.raw_client(7, b, 2)
        assert await d.ask(2, "put", item="y", attempt=2) == 1
        assert await d.ask(3, "read") == ["x", "y"]

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


def test_a_release_carries_the_floors_of_clients_that_wrote_nothing() -> None:
    """PR13, PR19, J17: a client went past its numbers with queries and refusals alone: no record says so. The next owner
    must know all the same, or a very late copy of what the client gave up would act."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "read", floor=1)
        await c.ask(9, "read", floor=9)
        assert await s.hosts[a.incarnation].run(a.ownership.release(0))
        await s.give(b, 0)
        late = s.raw_client(7, b, 2)
        late.call(4, "put", item="given up", floor=4)
        assert (await late.answer(4))[0] is Status.BELOW_FLOOR
        assert await late.ask(9, "read", floor=9, attempt=2) == []

    play(script)


# ---- handoffs


def test_a_target_is_told_what_it_may_claim_and_reads_nothing_before() -> None:
    """S07, PR12: nobody serves the shard meanwhile, so the source says with its poke what it released, and the target
    claims just that; a checkpoint that is under way, of which the release would have to wait, delays the handoff while
    the shard is still served."""

    async def script(s: Scenario) -> None:
        shard = shard_of("a", 2)
        a, b = await s.host(0, 1), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        held = s.store_of(a).hold("checkpoint")
        periodic = s.hosts[a.incarnation].run(a.upkeep.checkpoint())
        await held.reached()
        await s.move(b, shard)
        await asyncio.sleep(5)
        assert await c.ask(2, "put", item="y") == 1
        reads = s.store_of(b).hold("shards")
        s.store_of(a).unhold("checkpoint")
        await periodic
        await until(lambda: shard in b.shards)
        reads.let_go()
        d = s.raw_client(7, b, 2)
        assert await d.ask(3, "read") == ["x", "y"]
        assert set(a.shards) == {1 - shard}

    play(script, shards=2, store_poll_s=1000.0)


def test_a_poke_that_offers_what_is_not_to_be_had_changes_nothing() -> None:
    """S13: a shard of somebody else, at an epoch of the past or of the future, one that the store does not have."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        before = await s.store.shards()
        epoch = before[0].epoch
        b.ownership.poke([(0, epoch), (1, 0), (2, 1), (2**63, 1)])
        b.ownership.poke([(0, epoch + 1)])
        b.ownership.poke([(0, epoch - 1)])
        await asyncio.sleep(5)
        assert (set(a.shards), set(b.shards)) == ({0}, set())
        assert await s.store.shards() == before
        assert not b.ended.done()

    play(script, shards=2)


def test_a_release_goes_where_its_row_says_then_and_not_where_its_source_thinks() -> None:
    """S13, PR12: the target drains by the time of the release: what the source announces is wrong, and harmless."""

    async def script(s: Scenario) -> None:
        a, b, other = await s.host(0), await s.host(), await s.host()
        held = s.store_of(a).hold("checkpoint")
        await s.move(b, 0)
        await held.reached()
        await s.store.set_draining(b.incarnation, True)
        held.let_go()
        await until(lambda: not a.shards)
        await asyncio.sleep(5)
        assert (await s.row()).state is ShardState.FREE
        assert not b.shards
        await s.give(other, 0)
        d = s.raw_client(7, other)
        assert await d.ask(1, "put", item="x") == 0

    play(script)


# ---- after the loss


def test_a_host_that_lost_a_shard_runs_none_of_its_turns_any_more() -> None:
    """S09: what is queued is answered `Moved`; a turn that was under way ends without effect and without an answer."""

    async def script(s: Scenario) -> None:
        a, b = await s.host(0), await s.host()
        c = s.raw_client(7, a)
        await c.ask(1, "put", item="x")
        c.call(2, "put_slowly", item="running", seconds=1.0)
        c.call(3, "put", item="queued", prev=2)
        await asyncio.sleep(0.1)
        await s.condemn(a)
        await s.give(b, 0)
        a.ownership.poke()
        await until(lambda: not a.shards)
        assert c.told(Moved) == [3]
        n = a.commits.staged
        await asyncio.sleep(5)
        assert a.commits.staged == n
        assert c.answers(2) == c.answers(3) == []
        c.call(4, "read")
        assert c.told(Moved) == [3, 4]
        moved = [m for m in c.heard if isinstance(m, Moved)][-1]
        assert (moved.incarnation, moved.address) == (b.incarnation, b.address)

    play(script, lease_renew_s=1000.0, lease_s=3000.0)


def test_all_owners_together_leave_gapless_positions() -> None:
    """J05, J16, PR11: over a handoff, a failover and a takeover from a zombie, the records of all logs are 1, 2, 3 ..."""

    async def script(s: Scenario) -> None:
        hosts = [await s.host() for _ in range(4)]
        for host in hosts:
            s.store_of(host).hold("delete_log_rows")
        await s.give(hosts[0], 0)
        number = 0

        async def some(host: object, generation: int) -> None:
            nonlocal number
            c = s.raw_client(7, host, generation)  # type: ignore[arg-type] # a Host
            for _ in range(4):
                number += 1
                await c.ask(number, "put", item=f"i{number}", floor=number)

        await some(hosts[0], 1)
        await s.hosts[hosts[0].incarnation].run(hosts[0].ownership.release(0))
        await s.give(hosts[1], 0)
        await some(hosts[1], 2)
        await s.fail_over(hosts[1], hosts[2], 0)
        await some(hosts[2], 3)
        await s.condemn(hosts[2])
        await s.give(hosts[3], 0)
        await some(hosts[3], 4)
        records = [
            record
            for host in hosts
            for row in await s.log(host)
            for record in decode_batch(row.content, host.incarnation, row.n)
        ]
        assert [record.position for record in records] == list(range(1, 17))
        assert [record.seq for record in records] == list(range(1, 17))

    play(script, lease_renew_s=1000.0, lease_s=3000.0)
