"""Who gets the shards that have nobody: even, complete, and the same for the same facts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from atoll.sharding.allocation import allocate


@given(st.sets(st.integers(0, 300)), st.dictionaries(st.integers(1, 20), st.integers(0, 50)))
def test_every_homeless_shard_goes_to_the_emptiest_host(homeless: set[int], load: dict[int, int]) -> None:
    """All are placed, on known hosts only, and no host gets one while another has fewer."""
    placed = allocate(sorted(homeless), load)
    assert set(placed) == (homeless if load else set())
    assert set(placed.values()) <= set(load)
    after = dict(load)
    for host in placed.values():
        after[host] += 1
    for host in set(placed.values()):
        assert after[host] - 1 <= min(after.values())


def test_the_same_facts_give_the_same_placement() -> None:
    """Neither the order of the shards nor that of the hosts decides; ties go to the lower incarnation."""
    assert allocate([3, 1, 2, 0], {8: 0, 5: 0}) == {0: 5, 1: 8, 2: 5, 3: 8}
    assert allocate([0, 1, 2, 3], {5: 0, 8: 0}) == {0: 5, 1: 8, 2: 5, 3: 8}


def test_256_shards_on_three_hosts() -> None:
    """As even as can be."""
    placed = allocate(range(256), {1: 0, 2: 0, 3: 0})
    assert sorted(list(placed.values()).count(host) for host in (1, 2, 3)) == [85, 85, 86]
