"""The shard table: who serves which shard, as far as one process knows.

Knowledge comes from the store, from pushes and from `Moved` answers, in any order and more than once. An entry of a
higher epoch wins, so that old news never replaces newer. A wrong entry costs a redirect and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Route(msgspec.Struct, frozen=True, gc=False):
    epoch: int
    incarnation: int
    address: str


class ShardTable:
    def __init__(self) -> None:
        self._routes: dict[int, Route] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def route(self, shard: int) -> Route | None:
        return self._routes.get(shard)

    def merge(self, entries: Iterable[tuple[int, int, int, str]]) -> list[tuple[int, int, int, str]]:
        """Take in (shard, epoch, incarnation, address); return those entries that were news."""
        news = []
        for entry in entries:
            shard, epoch, incarnation, address = entry
            known = self._routes.get(shard)
            if known is None or epoch > known.epoch:
                self._routes[shard] = Route(epoch, incarnation, address)
                news.append(entry)
        return news

    def entries(self) -> tuple[tuple[int, int, int, str], ...]:
        return tuple((shard, r.epoch, r.incarnation, r.address) for shard, r in sorted(self._routes.items()))

    def addresses(self) -> list[str]:
        """Every address in the table, each once, in a stable order."""
        return list(dict.fromkeys(route.address for _, route in sorted(self._routes.items())))
