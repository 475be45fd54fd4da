"""Entities at rest: idle and durable, kept as what they are made from again. Pure.

    in memory, with an activation --idle for rest_idle_s--> at rest --its next command--> in memory, without the store
                                                              `--idle for passivate_idle_s, or above the bound--> gone

An entity at rest is its key and its encoded state: a sixth of what its objects take, and nothing that the garbage
collector has to look at. Those that hold more than their fields (a hook's resources, attributes of their own) never
rest: they stay as they are until they leave.

Who rested longest is found by generations, not by a list in order of use, which would cost more than the rest of it:
a generation holds who came to rest in an eighth of the idle time, or an eighth of all that may be in memory. The oldest
generation leaves first, inside of it in any order.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from ..actors.stored import StoredEntity
from ..persistence.overlay import EntityKey

if TYPE_CHECKING:
    from .shard import OwnedShard

GENERATIONS = 8
"""So many at least share what rests; each more is a look more for whoever is woken."""


class _Generation:
    __slots__ = ("began", "count", "parts", "used")

    def __init__(self, began: float) -> None:
        self.began = self.used = began
        """The last use of its first, and of its newest."""
        self.count = 0
        self.parts: dict[OwnedShard, dict[EntityKey, StoredEntity]] = {}

    def took(self, shard: OwnedShard) -> None:
        """One of that shard is gone."""
        self.count -= 1
        if not self.parts[shard]:
            del self.parts[shard]


class Resting:
    def __init__(self, idle_s: float, active_max: int) -> None:
        self._span_s = idle_s / GENERATIONS
        self._share = max(1, active_max // GENERATIONS)
        self._generations: deque[_Generation] = deque()
        self.count = 0

    def put(self, shard: OwnedShard, key: EntityKey, stored: StoredEntity, used: float) -> None:
        """`used`: when it was last; not before those that were put earlier, or by little."""
        generations = self._generations
        newest = generations[-1] if generations else None
        if newest is None or newest.count >= self._share or used - newest.began >= self._span_s:
            newest = _Generation(used)
            generations.append(newest)
        part = newest.parts.get(shard)
        if part is None:
            part = newest.parts[shard] = {}
        part[key] = stored
        newest.used = max(newest.used, used)
        newest.count += 1
        self.count += 1

    def take(self, shard: OwnedShard, key: EntityKey) -> StoredEntity | None:
        """It is called: it is made again, and rests no more. None: it does not rest here."""
        for generation in reversed(self._generations):
            part = generation.parts.get(shard)
            stored = None if part is None else part.pop(key, None)
            if stored is not None:
                generation.took(shard)
                self.count -= 1
                return stored
        return None

    def oldest_use(self) -> float:
        """When the newest of the oldest generation was last used; infinity when nobody rests."""
        generations = self._generations
        while generations and not generations[0].count:
            generations.popleft()
        return generations[0].used if generations else math.inf

    def drop(self) -> None:
        """One of the oldest generation leaves memory. There must be one."""
        assert self.oldest_use() < math.inf
        oldest = self._generations[0]
        shard, part = next(iter(oldest.parts.items()))
        part.popitem()
        oldest.took(shard)
        self.count -= 1

    def close(self, shard: OwnedShard) -> None:
        """The shard is not ours any more."""
        for generation in self._generations:
            gone = len(generation.parts.pop(shard, ()))
            generation.count -= gone
            self.count -= gone
