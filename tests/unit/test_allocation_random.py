"""Random clusters, planned for until there is nothing to do: what no plan may do, and where they all end."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placements import Placements

from atoll.sharding.allocation import Bounds, HostFacts

SEEDS = st.integers(0, 2**32)
"""A cluster is drawn from one: hypothesis prints it."""

LOADS = {
    "unknown": lambda _: 0.0,
    "equal": lambda luck: 0.02 * luck.uniform(0.95, 1.05),
    "uniform": lambda luck: luck.uniform(0, 0.05),
    "exponential": lambda luck: luck.expovariate(50),
    "heavy tail": lambda luck: min(5.0, 0.005 * luck.paretovariate(1.1)),
    "few are busy": lambda luck: luck.random() if luck.random() < 0.05 else 0.0,
    "all too hot": lambda luck: 0.3 * luck.paretovariate(1.0),
}
EVEN = {"unknown", "equal"}


def drawn_host(luck: random.Random, incarnation: int) -> HostFacts:
    weight = luck.choice([1.0, 1.0, 1.0, 2.0, luck.uniform(0.2, 5.0)])
    return HostFacts(incarnation, weight, luck.random() < 0.85, luck.randint(0, 1))


def drawn_cluster(luck: random.Random, hosts: int, shards: int, loads: str) -> Placements:
    """Shards lie anywhere: with hosts that are there, draining, gone; on their way to such ones."""
    bounds = Bounds(moves_under_way=luck.choice([1, 5, 64, 10_000]), moves_per_round=luck.choice([3, 64, 10_000]))
    of = [drawn_host(luck, incarnation) for incarnation in range(1, hosts + 1)]
    paper = Placements(of, [LOADS[loads](luck) for _ in range(shards)], bounds)
    favourites = luck.sample(range(hosts + 2), luck.randint(1, hosts))
    for shard in paper.holders:
        paper.holders[shard] = holder = luck.choice([None, luck.randint(1, hosts + 1), *favourites])
        target = luck.randint(1, hosts + 1)
        if holder in paper.hosts and holder != target and luck.random() < 0.05:
            paper.moving[shard] = target
    return paper


def rounds_max(paper: Placements) -> int:
    """Enough for every shard to move once, and then some."""
    at_once = min(paper.bounds.moves_under_way, paper.bounds.moves_per_round)
    return 20 + 2 * len(paper.loads) // at_once


@settings(deadline=None, max_examples=150)
@given(SEEDS, st.integers(1, 12), st.integers(0, 120), st.sampled_from(sorted(LOADS)))
def test_any_small_cluster_settles(seed: int, hosts: int, shards: int, loads: str) -> None:
    """S11: each plan keeps to eligible hosts and bounds; they come to an end, and where they end is even."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, hosts, shards, loads)
    paper.settle_in_steps(luck, 2 * rounds_max(paper))
    paper.check_settled(even=loads in EVEN)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(sorted(LOADS)))
def test_it_settles_after_every_event(seed: int, loads: str) -> None:
    """S11, S12: hosts join, leave, drain and come back, loads change; events overtake what the last one began."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, 5, 60, loads)
    newest = 5
    for _ in range(12):
        known = sorted(paper.hosts)
        event = luck.choice(["join", "join", "leave", "drain", "undrain", "loads"])
        if event == "join":
            newest += 1
            paper.hosts[newest] = drawn_host(luck, newest)
        elif event == "loads":
            paper.loads = [LOADS[loads](luck) for _ in paper.loads]
        elif event == "leave" and len(known) > 1:
            paper.lose(luck.choice(known))
        elif known:
            paper.change(luck.choice(known), eligible=event == "undrain")
        if luck.random() < 0.5:
            paper.settle_in_steps(luck, 2 * rounds_max(paper))
            paper.check_settled(even=loads in EVEN)
        else:
            paper.begin(paper.plan())
    paper.settle_in_steps(luck, 2 * rounds_max(paper))
    paper.check_settled(even=loads in EVEN)


@settings(deadline=None, max_examples=8)
@given(SEEDS, st.sampled_from(sorted(LOADS)))
def test_any_large_cluster_settles(seed: int, loads: str) -> None:
    """S11: 4,096 shards on up to 100 hosts; after a join and a loss too."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, luck.randint(60, 99), 4096, loads)
    paper.bounds = Bounds(moves_under_way=512, moves_per_round=512)
    paper.settle(rounds_max(paper))
    paper.check_settled(even=loads in EVEN)
    paper.hosts[1000] = HostFacts(1000)
    paper.lose(min(paper.hosts))
    paper.settle(rounds_max(paper))
    paper.check_settled(even=loads in EVEN)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from(["uniform", "exponential", "heavy tail", "few are busy", "all too hot"]))
def test_the_largest_load_goes_down(seed: int, loads: str) -> None:
    """S11: no evening out, of counts or loads, makes the hottest host hotter than it was: a part of noise aside, for
    light shards that it takes over.
    """
    luck = random.Random(seed)
    paper = drawn_cluster(luck, 6, 90, loads)
    paper.hosts = {i: HostFacts(i, host.weight) for i, host in paper.hosts.items()}
    paper.moving.clear()
    paper.holders = {shard: luck.choice([1, 1, 2, 3, 4, 5, 6]) for shard in paper.holders}
    assume(sum(paper.loads) > 0)
    of = paper.eligible()
    before = max(paper.levels().values())
    paper.settle(rounds_max(paper))
    after = max(paper.levels().values())
    fair = sum(paper.loads) * min(host.weight / sum(h.weight for h in of) for host in of)  # of the smallest host
    most = max(before, 1 + paper.bounds.noise(fair) / fair)
    assert after <= most + paper.bounds.noise(most * fair) / fair / 4


# ---- noise


def noisy_rounds(paper: Placements, luck: random.Random, rounds: int) -> Counter[int]:
    """How often each shard moved while loads were measured anew in each round, each up to 10 % off."""
    moved: Counter[int] = Counter()
    for _ in range(rounds):
        plan = paper.plan(noise=luck)
        moved.update(move.shard for move in plan.moves)
        paper.begin(plan)
        paper.finish()
    return moved


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.sampled_from(sorted(EVEN)))
def test_noise_on_equal_loads_moves_nothing(seed: int, loads: str) -> None:
    """S11: a hundred rounds without a single move."""
    luck = random.Random(seed)
    paper = drawn_cluster(luck, 8, 200, loads)
    paper.settle(rounds_max(paper))
    assert noisy_rounds(paper, luck, 100) == {}


@pytest.mark.parametrize("loads", ["uniform", "exponential", "heavy tail", "few are busy"])
@pytest.mark.parametrize("seed", range(3))
def test_noise_on_loads_of_all_kinds_comes_to_rest(seed: int, loads: str) -> None:
    """S11: whoever happens to stand at a bound gives something away once, nothing goes back and forth, and then there
    are a hundred rounds without a single move.
    """
    luck = random.Random(seed)
    of = [HostFacts(i, luck.choice([1.0, 1.0, 2.0])) for i in range(1, 7)]
    paper = Placements(of, [LOADS[loads](luck) for _ in range(256)])
    paper.settle(20)
    settling = noisy_rounds(paper, luck, 100)
    assert settling.total() <= 0.05 * len(paper.loads)
    assert max(settling.values(), default=0) <= 1
    assert noisy_rounds(paper, luck, 100) == {}
