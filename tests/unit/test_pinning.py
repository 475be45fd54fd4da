"""Pinned shards: alone on a host when that is possible, served always, and nothing moves for it twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from placements import PinnedPlacements

from atoll.sharding.allocation import Bounds, HostFacts, Plan, Reason

SEEDS = st.integers(0, 2**32)
"""A cluster is drawn from one: hypothesis prints it."""


def even_cluster(hosts: int, shards: int, load: float = 0.0, bounds: Bounds | None = None) -> PinnedPlacements:
    """Settled, without pins."""
    paper = PinnedPlacements([HostFacts(i) for i in range(1, hosts + 1)], [load] * shards, bounds)
    paper.settle(200)
    return paper


def one_on(paper: PinnedPlacements, host: int) -> int:
    return next(shard for shard, holder in paper.holders.items() if holder == host)


def moves_to_settle(paper: PinnedPlacements) -> int:
    before = paper.moves
    paper.settle(200)
    paper.check_settled(even=True)
    return paper.moves - before


# ---- one pin


def test_a_pinned_shard_stays_where_it_is_and_all_others_leave() -> None:
    """S11: no more moves than there are others beside it, a round's bound at a time, each for the reason `room`."""
    paper = even_cluster(4, 256, bounds=Bounds(moves_under_way=20, moves_per_round=20))
    shard = one_on(paper, 2)
    paper.pins = {shard: None}
    first = paper.plan()
    assert [(move.source, move.reason) for move in first.moves] == [(2, Reason.ROOM)] * 20
    assert moves_to_settle(paper) == 63
    assert paper.alone() == {shard: 2}


def test_a_shard_pinned_to_another_node_goes_there_first() -> None:
    """S11: it is one move, before all that has to make room for it."""
    paper = even_cluster(4, 64)
    shard = one_on(paper, 1)
    paper.pins = {shard: 3}
    first = paper.plan().moves[0]
    assert (first.shard, first.source, first.target, first.reason) == (shard, 1, 3, Reason.PINNED)
    paper.settle(20)
    assert paper.alone() == {shard: 3}
    paper.check_settled(even=True)


def test_a_host_that_is_unpinned_gets_its_fair_share_again() -> None:
    """S11: exactly the shards that it lacks move, to it."""
    paper = even_cluster(4, 256)
    shard = one_on(paper, 2)
    paper.pins = {shard: None}
    paper.settle(20)
    paper.pins = {}
    assert {move.target for move in paper.plan().moves} == {2}
    assert moves_to_settle(paper) == 63
    assert set(paper.counts().values()) == {64}


def test_the_host_of_a_pinned_shard_dies() -> None:
    """S11: the shard is placed in the same round as any other, and the host that it comes to is emptied for it. What joins
    later is the others'."""
    paper = even_cluster(4, 256)
    shard = one_on(paper, 2)
    paper.pins = {shard: 2}
    paper.settle(20)
    paper.lose(2)
    assert paper.plan().place.keys() == {shard}
    paper.settle(20)
    paper.check_settled(even=True)
    home = paper.alone()[shard]
    paper.hosts[9] = HostFacts(9)
    paper.settle(20)
    paper.check_settled(even=True)
    assert paper.alone() == {shard: home}


def test_a_shard_alone_beside_a_host_that_died_moves_to_the_one_that_joins() -> None:
    """S11: with one host left all are served there. A second one: one move makes it alone, not one of each other shard."""
    paper = even_cluster(2, 64)
    shard = one_on(paper, 1)
    paper.pins = {shard: None}
    paper.settle(20)
    paper.lose(2)
    paper.settle(20)
    assert paper.counts() == {1: 64}
    paper.hosts[3] = HostFacts(3)
    assert moves_to_settle(paper) == 1
    assert paper.alone() == {shard: 3}


def test_a_wanted_node_that_comes_back_gets_its_shard_back() -> None:
    """S11: until then it is alone elsewhere."""
    paper = even_cluster(3, 60)
    shard = one_on(paper, 2)
    paper.pins = {shard: 2}
    paper.settle(20)
    paper.change(2, eligible=False)
    paper.settle(20)
    assert paper.alone()[shard] != 2
    paper.check_settled(even=True)
    paper.change(2, eligible=True)
    paper.settle(20)
    assert paper.alone() == {shard: 2}
    paper.check_settled(even=True)


def test_a_host_that_drains_is_emptied_before_room_is_made_for_a_pin() -> None:
    """S07, S11: a drained node may be about to go; a pin can wait."""
    paper = even_cluster(4, 256, bounds=Bounds(moves_under_way=16, moves_per_round=16))
    paper.pins = {one_on(paper, 2): None}
    paper.change(4, eligible=False)
    reasons: list[Reason] = []
    while (plan := paper.plan()) != Plan({}):
        reasons += [move.reason for move in plan.moves]
        paper.begin(plan)
        paper.finish()
    assert reasons[:64] == [Reason.LEAVING] * 64
    assert Reason.ROOM in reasons
    paper.check_settled(even=True)


def test_one_host_serves_all_whatever_is_pinned() -> None:
    """S11: availability goes before being alone."""
    paper = PinnedPlacements([HostFacts(1)], [0.0] * 8)
    paper.pins = {3: 1, 4: None}
    assert paper.plan().place == dict.fromkeys(range(8), 1)


def test_more_pins_than_hosts_and_one_of_them_is_alone_already() -> None:
    """S11: the one that is alone stays so, whatever its number; the others are shards like all others, until a host
    joins."""
    paper = even_cluster(3, 60)
    paper.pins = {one_on(paper, 3): None}
    paper.settle(20)
    alone = paper.alone()
    paper.pins.update({min(set(range(60)) - alone.keys()): None})
    paper.settle(20)
    assert len(paper.alone()) == 2
    (gone,) = paper.alone().keys() - alone.keys()
    paper.lose(paper.alone()[gone])
    paper.settle(20)
    assert paper.alone() == alone
    paper.hosts[9] = HostFacts(9)
    paper.settle(20)
    assert len(paper.alone()) == 2
    paper.check_settled(even=True)


def test_a_move_that_was_under_way_to_a_host_that_is_set_apart_is_called_off() -> None:
    """S11: begun before the pin; the shard stays where it is."""
    paper = even_cluster(3, 60)
    shard, other = one_on(paper, 1), one_on(paper, 2)
    paper.moving[other] = 1
    paper.pins = {shard: None}
    plan = paper.plan()
    assert plan.cancel == (other,)


def test_the_hottest_shards_of_a_loaded_cluster_are_alone_and_the_rest_is_even_by_load() -> None:
    """S11: the loads of shards that are alone say nothing about the others' shares."""
    paper = even_cluster(5, 200, load=0.01)
    paper.loads[7] = paper.loads[8] = 0.9
    paper.settle(20)
    paper.pins = {7: None, 8: None}
    paper.settle(20)
    assert paper.alone().keys() == {7, 8}
    paper.check_settled(even=True)
    luck = random.Random(1)
    for _ in range(100):
        assert paper.plan(noise=luck) == Plan({})


# ---- any


def drawn_pins(luck: random.Random, paper: PinnedPlacements) -> dict[int, int | None]:
    """As many as may be too many, some to hosts that are gone, and some to the same one."""
    known = [None, None, *range(1, len(paper.hosts) + 2)]
    pinned = luck.sample(sorted(paper.holders), min(len(paper.holders), luck.randint(1, len(paper.hosts) + 2)))
    return {shard: luck.choice(known) for shard in pinned}


def drawn_cluster(luck: random.Random, hosts: int, shards: int, *, loads: bool) -> PinnedPlacements:
    bounds = Bounds(moves_under_way=luck.choice([1, 5, 64, 10_000]), moves_per_round=luck.choice([3, 64, 10_000]))
    of = [
        HostFacts(i, luck.choice([1.0, 1.0, 2.0, luck.uniform(0.2, 5.0)]), luck.random() < 0.85, luck.randint(0, 1))
        for i in range(1, hosts + 1)
    ]
    paper = PinnedPlacements(of, [luck.expovariate(50) if loads else 0.0 for _ in range(shards)], bounds)
    for shard in paper.holders:
        paper.holders[shard] = holder = luck.choice([None, luck.randint(1, hosts + 1)])
        target = luck.randint(1, hosts + 1)
        if holder in paper.hosts and holder != target and luck.random() < 0.05:
            paper.moving[shard] = target
    paper.pins = drawn_pins(luck, paper)
    return paper


def rounds_max(paper: PinnedPlacements) -> int:
    """Enough for every shard to move a few times."""
    at_once = min(paper.bounds.moves_under_way, paper.bounds.moves_per_round)
    return 80 + 8 * len(paper.loads) // at_once


@settings(deadline=None, max_examples=200)
@example(seed=1, hosts=3, shards=40, loads=False)
@given(seed=SEEDS, hosts=st.integers(1, 8), shards=st.integers(1, 80), loads=st.booleans())
def test_any_cluster_settles_with_any_pins(seed: int, hosts: int, shards: int, loads: bool) -> None:
    """S11: each plan keeps to eligible hosts, bounds and seats; they come to an end, with as many alone as possible and
    the rest as even as without pins. Then unpinned, and settled again."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, hosts, shards, loads=loads)
    paper.settle_in_steps(luck, rounds_max(paper))
    paper.check_settled(even=not loads)
    paper.pins = {}
    paper.settle_in_steps(luck, rounds_max(paper))
    paper.check_settled(even=not loads)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, loads=st.booleans())
def test_it_settles_after_every_event_with_pins(seed: int, loads: bool) -> None:
    """S11, S12: hosts join, leave, drain and come back, shards are pinned and unpinned; events overtake what the last one
    began."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, 5, 60, loads=loads)
    newest = 5
    for _ in range(12):
        known = sorted(paper.hosts)
        event = luck.choice(["join", "leave", "drain", "undrain", "pin", "unpin"])
        if event == "join":
            newest += 1
            paper.hosts[newest] = HostFacts(newest, version=luck.randint(0, 1))
        elif event == "leave" and len(known) > 1:
            paper.lose(luck.choice(known))
        elif event == "pin":
            paper.pins[luck.randrange(60)] = luck.choice([None, newest, *known])
        elif event == "unpin":
            paper.pins.pop(luck.choice([*paper.pins, 0]), None)
        elif known:
            paper.change(luck.choice(known), eligible=event == "undrain")
        if luck.random() < 0.5:
            paper.settle_in_steps(luck, rounds_max(paper))
            paper.check_settled(even=not loads)
        else:
            paper.begin(paper.plan())
    paper.settle_in_steps(luck, rounds_max(paper))
    paper.check_settled(even=not loads)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, hosts=st.integers(2, 8), pins=st.integers(1, 7))
def test_pins_in_an_even_cluster_move_what_has_to_move_and_each_shard_once(seed: int, hosts: int, pins: int) -> None:
    """S11: all that stood beside them, and nothing else; taken back, what the hosts then lack."""
    luck = random.Random(seed)
    paper = even_cluster(hosts, 40 * hosts)
    of = luck.sample(sorted(paper.hosts), min(pins, hosts - 1))
    paper.pins = {one_on(paper, host): luck.choice([None, host]) for host in of}
    assert moves_to_settle(paper) == 39 * len(of)
    assert paper.alone() == {shard: paper.holders[shard] for shard in paper.pins}
    paper.pins = {}
    assert moves_to_settle(paper) == 39 * len(of)


@pytest.mark.parametrize("seed", range(3))
def test_noise_moves_nothing_beside_a_pin(seed: int) -> None:
    """S11: a hundred rounds of loads that are measured anew, each up to 10 % off, without a single move."""
    luck = random.Random(seed)
    paper = even_cluster(6, 120, load=0.02)
    paper.pins = {luck.randrange(120): None, luck.randrange(120): 3}
    paper.settle(50)
    for _ in range(100):
        assert paper.plan(noise=luck) == Plan({})
