"""Which host gets which shard: the rules one by one, each in the smallest cluster that shows it."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from placements import STRATEGY, Placements

from atoll.sharding.allocation import Bounds, HostFacts, Move, Plan, Reason, ShardFacts

FREELY = Bounds(moves_under_way=10_000, moves_per_round=10_000)


def hosts(*incarnations: int) -> list[HostFacts]:
    return [HostFacts(incarnation) for incarnation in incarnations]


def held(by: int, shards: range, load: float = 0.0) -> list[ShardFacts]:
    return [ShardFacts(shard, by, load) for shard in shards]


def plan(of: list[HostFacts], shards: list[ShardFacts], bounds: Bounds = FREELY) -> Plan:
    return STRATEGY.plan(of, shards, bounds)


# ---- homeless shards


def test_256_shards_on_three_hosts() -> None:
    """S11: as even as can be, at once, whatever the bounds on moves; ties go to the lower incarnation."""
    placed = plan(hosts(3, 1, 2), [ShardFacts(shard) for shard in range(256)], Bounds(1, 1)).place
    assert Counter(placed.values()) == {1: 86, 2: 85, 3: 85}


def test_the_order_of_the_facts_decides_nothing() -> None:
    """S11: neither that of the hosts nor that of the shards, nor that in which floating-point loads are added."""
    luck = random.Random(7)
    of = [HostFacts(incarnation, weight=luck.choice([1.0, 2.0])) for incarnation in range(1, 9)]
    shards = [ShardFacts(s, luck.choice([None, 1, 2, 3]), luck.expovariate(3)) for s in range(200)]
    expected = plan(of, shards)
    assert expected.moves
    for _ in range(5):
        luck.shuffle(of)
        luck.shuffle(shards)
        assert plan(of, shards) == expected


def test_a_holder_that_is_not_among_the_hosts_is_gone() -> None:
    """S11: its shards are homeless, and a move that it had begun means nothing any more."""
    shards = [ShardFacts(0, 9), ShardFacts(1, 9, moving_to=2), ShardFacts(2, 1)]
    assert plan(hosts(1, 2), shards) == Plan({0: 2, 1: 1})


def test_nobody_is_eligible() -> None:
    """S11: all stays as it is; only what moves to where nothing may go is called back."""
    of = [HostFacts(1, eligible=False), HostFacts(2, eligible=False)]
    assert plan(of, [ShardFacts(0, 1), ShardFacts(1, 1, moving_to=2), ShardFacts(2)]) == Plan({}, (), (1,))
    assert plan([], [ShardFacts(0)]) == Plan({})
    assert plan(hosts(1), []) == Plan({})


def test_homeless_shards_go_to_new_code_first() -> None:
    """S17: where several hosts lack shards, those with the newest version get theirs first; the others by moves."""
    of = [HostFacts(1), HostFacts(2), HostFacts(3, version=1)]
    shards = [*held(1, range(20)), *held(2, range(20, 30)), *(ShardFacts(s) for s in range(30, 40))]
    found = plan(of, shards)
    assert found.place == dict.fromkeys(range(30, 40), 3)
    assert Counter((move.source, move.target) for move in found.moves) == {(1, 3): 3, (1, 2): 3}


def test_new_code_gets_no_more_than_its_share() -> None:
    """S17: old and new serve together; a version is no reason to move anything."""
    of = [HostFacts(1), HostFacts(2, version=1)]
    assert plan(of, [*held(1, range(10)), *held(2, range(10, 20))]) == Plan({})
    assert Counter(plan(of, [ShardFacts(s) for s in range(20)]).place.values()) == {1: 10, 2: 10}


def test_the_heaviest_homeless_shards_are_placed_first() -> None:
    """S11: so that the small ones even out what the large ones left uneven (LPT)."""
    loads = [3.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0]
    placed = plan(hosts(1, 2), [ShardFacts(s, None, load) for s, load in enumerate(loads)]).place
    assert [sum(loads[s] for s, to in placed.items() if to == host) for host in (1, 2)] == [6.0, 6.0]


def test_homeless_shards_keep_away_from_a_hot_host() -> None:
    """S11: it is short of shards because the one that it has is hot; they go where load has room."""
    shards = [ShardFacts(0, 1, 5.0), *held(2, range(1, 13), 0.1), *held(3, range(13, 25), 0.1)]
    shards += [ShardFacts(s, None, 0.1) for s in range(25, 35)]
    assert Counter(plan(hosts(1, 2, 3), shards).place.values()) == {2: 5, 3: 5}


# ---- counts


def test_a_host_that_joins_gets_its_share_and_nobody_else_anything() -> None:
    """S02, S11: exactly its share moves, and each of the others gives its part of it."""
    shards = [*held(1, range(128)), *held(2, range(128, 256))]
    found = plan(hosts(1, 2, 3), shards)
    assert Counter((move.source, move.target) for move in found.moves) == {(1, 3): 42, (2, 3): 43}
    assert {move.reason for move in found.moves} == {Reason.COUNT}


def test_a_difference_of_one_shard_is_none() -> None:
    """S11: whoever has the one too many keeps it."""
    for counts in itertools.permutations((3, 3, 4)):
        shards, first = [], 0
        for host, count in enumerate(counts, 1):
            shards += held(host, range(first, first + count))
            first += count
        assert plan(hosts(1, 2, 3), shards) == Plan({})


@pytest.mark.parametrize("seed", range(40))
def test_no_even_placement_needs_fewer_moves(seed: int) -> None:
    """S11: the fewest moves that bring all counts within the rounding of their shares, found by trying all roundings."""
    luck = random.Random(seed)
    of = [HostFacts(i, luck.choice([1.0, 1.0, 2.0, luck.uniform(0.5, 4)])) for i in range(1, luck.randint(3, 8))]
    paper = Placements(of, [0.0] * luck.randint(60, 90), luck.choice([FREELY, Bounds(3, 2)]))
    paper.holders = {shard: luck.choice(of).incarnation for shard in paper.holders}
    have = paper.counts()
    roundings = [range(math.floor(share), math.ceil(share) + 1) for share in paper.shares().values()]
    fewest = min(
        sum(max(0, have[i] - count) for i, count in zip(paper.shares(), counts, strict=True))
        for counts in itertools.product(*roundings)
        if sum(counts) == len(paper.loads)
    )
    above = sum(max(0, have[i] - math.ceil(share)) for i, share in paper.shares().items())
    below = sum(max(0, math.floor(share) - have[i]) for i, share in paper.shares().items())
    assert fewest == max(above, below)
    paper.settle(100)
    paper.check_settled(even=True)
    assert paper.moves == fewest


def test_weights_that_are_not_whole_numbers() -> None:
    """S11: within one shard of the share, to the last."""
    of = [HostFacts(1, 0.1), HostFacts(2, 0.2), HostFacts(3, 0.7)]
    assert Counter(plan(of, [ShardFacts(s) for s in range(1000)]).place.values()) == {1: 100, 2: 200, 3: 700}


def test_a_host_with_next_to_no_weight_is_not_left_with_nothing() -> None:
    """S11: while there are enough shards for all."""
    of = [HostFacts(1, 1e-9), HostFacts(2), HostFacts(3)]
    found = plan(of, [*held(2, range(5)), *held(3, range(5, 10))])
    assert [(move.source, move.target) for move in found.moves] == [(3, 1)]
    assert plan(of, [*held(2, range(1)), *held(3, range(1, 2))]) == Plan({}), "two are not enough for three"


# ---- bounds, and moves under way


def test_only_so_many_moves_at_the_same_time() -> None:
    """S11, S12: those under way count, and what the bound leaves is begun in later rounds."""
    shards = held(1, range(100))
    assert len(plan(hosts(1, 2), shards, Bounds(moves_under_way=8, moves_per_round=5)).moves) == 5
    shards = [ShardFacts(s, 1, moving_to=2 if s < 6 else None) for s in range(100)]
    later = plan(hosts(1, 2), shards, Bounds(moves_under_way=8, moves_per_round=5))
    assert len(later.moves) == 2
    assert {move.shard for move in later.moves} & set(range(6)) == set()
    shards = [ShardFacts(s, 1, moving_to=2 if s < 9 else None) for s in range(100)]
    assert plan(hosts(1, 2), shards, Bounds(moves_under_way=8, moves_per_round=5)) == Plan({})


def test_a_move_under_way_counts_as_done() -> None:
    """S11: it is not begun again, nor is anything else moved in its stead."""
    shards = [ShardFacts(s, 1, moving_to=2 if s < 5 else None) for s in range(10)]
    assert plan(hosts(1, 2), shards) == Plan({})


def test_a_move_whose_target_is_lost_or_draining_is_called_back() -> None:
    """S11, S13: nothing is to be moved to where nothing may go; its source keeps the shard."""
    shards = [*held(1, range(4)), ShardFacts(4, 1, moving_to=9), *held(2, range(5, 9)), ShardFacts(9, 2, moving_to=3)]
    of = [HostFacts(1), HostFacts(2), HostFacts(3, eligible=False)]
    assert plan(of, shards) == Plan({}, (), (4, 9))


def test_a_leaving_host_whose_target_is_lost_gets_another_one_first() -> None:
    """S11, S13: the handoff has begun, so it is the most urgent."""
    of = [HostFacts(1, eligible=False), HostFacts(2)]
    shards = [ShardFacts(0, 1, 5.0), ShardFacts(1, 1, 1.0, moving_to=9), ShardFacts(2, 1, 2.0, moving_to=8)]
    assert plan(of, shards, Bounds(2, 2)) == Plan(
        {}, (Move(2, 1, 2, Reason.LEAVING), Move(1, 1, 2, Reason.LEAVING)), ()
    )
    assert plan(of, shards, Bounds(1, 1)) == Plan({}, (Move(2, 1, 2, Reason.LEAVING),), (1,))


# ---- leaving hosts


def test_a_leaving_host_is_emptied_heaviest_first() -> None:
    """S07, S11: should it be lost before it is empty, what has to fail over is what is used least."""
    of = [HostFacts(1, eligible=False), HostFacts(2), HostFacts(3)]
    shards = [ShardFacts(s, 1, float(s % 4)) for s in range(8)]
    paper = Placements(of, [shard.load for shard in shards], Bounds(3, 3))
    paper.holders = dict.fromkeys(range(8), 1)
    left = []
    while (found := paper.plan()) != Plan({}):
        left.append([move.shard for move in found.moves])
        paper.begin(found)
        paper.finish()
    assert left == [[3, 7, 2], [6, 1, 5], [0, 4]]
    paper.check_settled(even=False)


def test_emptying_comes_before_evening_out() -> None:
    """S11: the bound on moves is for those first who have to go."""
    of = [HostFacts(1, eligible=False), HostFacts(2), HostFacts(3)]
    shards = [*held(1, range(6)), *held(2, range(6, 40))]
    found = plan(of, shards, Bounds(8, 8))
    assert [move.reason for move in found.moves] == [Reason.LEAVING] * 6 + [Reason.COUNT] * 2
    assert {move.target for move in found.moves} == {3}


def test_a_new_host_beside_a_leaving_one_moves_each_shard_once() -> None:
    """S17: an upgrade of a node, when the old host drains from the moment that the new one is there."""
    of = [HostFacts(1), HostFacts(2, eligible=False), HostFacts(3), HostFacts(4, version=1)]
    shards = [*held(1, range(30)), *held(2, range(30, 60)), *held(3, range(60, 90))]
    found = plan(of, shards)
    assert sorted(move.shard for move in found.moves) == list(range(30, 60))
    assert {move.target for move in found.moves} == {4}


# ---- loads


def test_a_hot_host_gives_away_what_is_enough_and_no_more() -> None:
    """S11: the lightest shard that brings it back to its share, to where most room is."""
    shards = [ShardFacts(s, 1, load) for s, load in enumerate([0.8, 0.45, 0.4, 0.2])]
    shards += [*held(2, range(4, 8), 0.2), *held(3, range(8, 12), 0.3)]
    assert plan(hosts(1, 2, 3), shards).moves == (Move(1, 1, 2, Reason.LOAD),)


def test_a_load_within_noise_moves_nothing() -> None:
    """S11: neither a fifth above the share, nor a tenth of a core however much above the share that is."""
    uneven = [0.1, 0.5, 0.6]
    for factor, spare in ((1.0, 0.15), (0.01, 0.9)):
        shards = [ShardFacts(s, 1, factor * load) for s, load in enumerate([*uneven, spare])]
        shards += [ShardFacts(s, 2, factor * load) for s, load in enumerate([*uneven, 0.0], 4)]
        assert plan(hosts(1, 2), shards) == Plan({})
    shards = [ShardFacts(s, 1, load) for s, load in enumerate([*uneven, 0.9])]
    shards += [ShardFacts(s, 2, load) for s, load in enumerate([*uneven, 0.0], 4)]
    assert plan(hosts(1, 2), shards).moves, "and this is more than noise"


def test_a_shard_that_is_too_hot_for_anybody_stays_alone() -> None:
    """S11: the others leave it; it would be as hot anywhere else. Its host gives away neither it nor its last one."""
    paper = Placements(hosts(1, 2, 3), [4.0] + [0.2] * 29)
    paper.holders = {shard: shard // 10 + 1 for shard in range(30)}
    found = paper.plan()
    assert {(move.source, move.reason) for move in found.moves} == {(1, Reason.LOAD)}
    assert 0 not in {move.shard for move in found.moves}
    paper.settle(10)
    assert paper.holders[0] == 1
    paper.check_settled(even=False)
    alone = Placements(hosts(1, 2), [4.0, 0.1, 0.1])
    alone.holders = {0: 1, 1: 2, 2: 2}
    assert alone.plan() == Plan({})


def test_two_hot_shards_do_not_stay_together() -> None:
    """S11: neither fits into a share, but apart they are less hot than together."""
    shards = [ShardFacts(0, 1, 2.0), ShardFacts(1, 1, 2.0), *held(1, range(2, 4), 0.0), *held(2, range(4, 8), 0.1)]
    found = plan(hosts(1, 2), shards)
    assert [move for move in found.moves if move.reason is Reason.LOAD] == [Move(0, 1, 2, Reason.LOAD)]


def test_a_shard_is_not_moved_to_where_it_would_be_about_as_hot() -> None:
    """S11: the larger of the two loads has to get lower by more than noise, else it would come back."""
    for one, moves in ((0.6, 0), (0.9, 1)):
        shards = [*held(1, range(3), one), ShardFacts(3, 2, 0.95)]
        assert len(plan(hosts(1, 2), shards).moves) == moves


def test_a_host_keeps_its_last_shard() -> None:
    """S11: even one that would fit elsewhere."""
    of = [HostFacts(1), HostFacts(2, weight=9.0)]
    assert plan(of, [ShardFacts(0, 1, 2.0), *held(2, range(1, 10), 0.5)]) == Plan({})


def test_loads_that_differ_by_noise_leave_counts_exact() -> None:
    """S11: three shards may be as much work as the share of four; the fourth is moved all the same."""
    shards = [*held(1, range(5), 1.0), *held(2, range(5, 8), 1.1)]
    assert plan(hosts(1, 2), shards).moves == (Move(0, 1, 2, Reason.COUNT),)


def test_hot_and_light_shards_change_places() -> None:
    """S11: a host full of light shards has room for load, but not for more shards: hot hosts take light ones over."""
    shards = [*held(1, range(5), 1.0), *held(2, range(5, 9), 1.0), *held(3, range(9, 30), 0.001)]
    paper = Placements(hosts(1, 2, 3), [shard.load for shard in shards], FREELY)
    paper.holders = {shard.shard: shard.holder for shard in shards}
    assert {move.reason for move in paper.plan().moves if move.source == 3} == {Reason.COUNT}
    paper.settle(5)
    assert max(paper.levels().values()) < 1.2
    assert max(paper.counts().values()) <= 20


def test_nobody_gets_more_than_twice_its_share_of_shards_for_their_lightness() -> None:
    """S11: each shard is work of its own, however little load it has now."""
    paper = Placements(hosts(1, 2, 3), [1.0] * 10 + [0.3] * 10 + [0.001] * 10, FREELY)
    paper.holders = {shard: shard // 10 + 1 for shard in range(30)}
    paper.settle(20)
    assert max(paper.counts().values()) <= 20
    paper.check_settled(even=False)


def test_a_joining_host_gets_load_with_its_shards() -> None:
    """S02, S11: neither the lightest nor the heaviest ones: those that bring it near its share of both."""
    luck = random.Random(3)
    paper = Placements(hosts(1, 2, 3), [luck.expovariate(10) for _ in range(240)], FREELY)
    paper.settle(10)
    paper.hosts[4] = HostFacts(4)
    paper.settle(10)
    assert 54 <= paper.counts()[4] <= 66
    assert paper.levels()[4] == pytest.approx(1, abs=0.1)


def test_an_empty_host_gets_a_shard_however_hot() -> None:
    """S11: nobody is left with nothing because all that others have is hot."""
    paper = Placements(hosts(1, 2), [3.0, 3.0, 3.0])
    paper.holders = dict.fromkeys(range(3), 1)
    paper.settle(5)
    assert paper.counts() == {1: 2, 2: 1}
