"""The shard table: news in any order and any number, the higher epoch wins."""

from __future__ import annotations

import itertools

from atoll.sharding.table import Route, ShardTable

NEWS = [(0, 1, 5, "a:1"), (0, 3, 7, "c:1"), (0, 2, 6, "b:1"), (1, 1, 5, "a:1")]


def test_news_in_any_order_give_the_same_table() -> None:
    """S10: late and repeated entries change nothing."""
    for order in itertools.permutations(NEWS + NEWS[:2]):
        table = ShardTable()
        for entry in order:
            table.merge([entry])
        assert table.route(0) == Route(3, 7, "c:1")
        assert table.entries() == ((0, 3, 7, "c:1"), (1, 1, 5, "a:1"))


def test_merge_returns_what_was_news() -> None:
    """Only that is pushed on; an entry of the same epoch is known already."""
    table = ShardTable()
    assert table.merge(NEWS) == [NEWS[0], NEWS[1], NEWS[3]]
    assert table.merge(NEWS) == []
    assert table.merge([(0, 3, 9, "other:1")]) == []


def test_addresses_are_each_once() -> None:
    table = ShardTable()
    table.merge([(2, 1, 5, "a:1"), (0, 1, 6, "b:1"), (1, 1, 5, "a:1")])
    assert table.addresses() == ["b:1", "a:1"]
    assert len(table) == 3
    assert table.route(9) is None
