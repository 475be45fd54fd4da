"""The sketch of the busiest entities, beside somebody who counts everything."""

from __future__ import annotations

from collections import Counter

import pytest
from luck import Luck

from atoll.sharding.hot import COUNTERS, FADE, SAMPLED, HotEntities


def took(sketch: HotEntities, key: tuple[str, str], seconds: float) -> None:
    if sketch.skip:
        sketch.skip -= 1
    else:
        sketch.took(key, seconds)


def fed(sketch: HotEntities, luck: Luck, turns: int) -> Counter[str]:
    """Five hot entities among a hundred thousand, all with turns of a millisecond; returns how many each had."""
    true: Counter[str] = Counter()
    for _ in range(turns):
        id = f"hot {luck.randrange(5)}" if luck.random() < 0.3 else f"{luck.randrange(100_000)}"
        true[id] += 1
        took(sketch, ("Box", id), 0.001)
    return true


def test_the_hot_ones_are_found_among_very_many_with_their_shares() -> None:
    luck = Luck()
    sketch = HotEntities(luck.random)
    true = fed(sketch, luck, 300_000)
    found = dict(sketch.hottest(5))
    assert {id for _, id in found} == {id for id, _ in true.most_common(5)}, luck
    for (_, id), share in found.items():
        assert share == pytest.approx(true[id] / 300_000, abs=1 / COUNTERS + 0.01), luck


def test_it_stays_as_small_as_it_is_promised() -> None:
    luck = Luck()
    sketch = HotEntities(luck.random)
    fed(sketch, luck, 100_000)
    assert len(sketch._counts) == len(sketch._order) == COUNTERS
    assert {key for _, key in sketch._order} == set(sketch._counts)


def test_no_count_is_too_low_nor_too_high_by_more_than_the_smallest() -> None:
    """The promise of Space-Saving, with every turn looked at."""
    luck = Luck()
    sketch, true = HotEntities(lambda: 0.0), Counter[str]()
    for _ in range(50_000):
        id = f"{int(luck.paretovariate(0.5)) % 5000}"
        true[id] += 1
        took(sketch, ("Box", id), 1.0)
    smallest = min(sketch._counts.values())
    for (_, id), count in sketch._counts.items():
        assert true[id] <= count <= true[id] + smallest, luck
    assert {id for id, times in true.items() if times > smallest} <= {id for _, id in sketch._counts}, luck


def test_counts_fade_and_what_is_hot_now_comes_first() -> None:
    luck = Luck()
    sketch = HotEntities(luck.random)
    for _ in range(10_000):
        took(sketch, ("Box", "before"), 0.001)
    for _ in range(20):
        sketch.fade()
        for _ in range(1_000):
            took(sketch, ("Box", "now"), 0.001)
    (first, share), (second, _) = sketch.hottest(5)
    assert (first[1], second[1]) == ("now", "before")
    assert share > 0.9
    assert FADE < 1


def test_nearly_all_turns_cost_a_counter_only() -> None:
    luck = Luck()
    sketch = HotEntities(luck.random)
    for _ in range(100_000):
        took(sketch, ("Box", "a"), 1.0)
    assert sketch._total == pytest.approx(100_000 / SAMPLED, rel=0.1), luck


def test_nothing_ran_nothing_is_hot() -> None:
    assert HotEntities(lambda: 0.0).hottest(5) == []
