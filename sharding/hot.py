"""The busiest entities of a host: a sketch of bounded size over all its turns. Pure.

Space-Saving (Metwally, Agrawal, El Abbadi, 2005): `COUNTERS` counters; one without a counter takes over the smallest
and what stands on it. Whatever takes more than 1 / COUNTERS of the host's time is in the sketch, and no count is too
low, nor too high by more than the smallest. Counts fade, so that they tell of the last seconds. (The one library with
this, Apache DataSketches, brings NumPy and cannot fade.)

One turn in `SAMPLED` on average is looked at: a look at each would cost more than it tells.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ..persistence.overlay import EntityKey

COUNTERS = 256
SAMPLED = 16
FADE = 0.8
"""Of a count, what is left at the next `fade`. With one each two seconds half of it is from the last six."""


class HotEntities:
    def __init__(self, uniform: Callable[[], float]) -> None:
        """`uniform`: luck, between 0 and 1."""
        self._uniform = uniform
        self.skip = 0
        """Turns that are not looked at before the next one is: the caller counts them down, which is all they cost."""
        self._counts: dict[EntityKey, float] = {}
        self._order: list[tuple[float, EntityKey]] = []
        """A heap. Each entry was its count once: one that has grown since is put right when it comes up."""
        self._total = 0.0

    def took(self, key: EntityKey, seconds: float) -> None:
        """It had the host for so long. Only when `skip` is 0."""
        self.skip = int(self._uniform() * (2 * SAMPLED - 1))
        self._add(key, seconds)

    def _add(self, key: EntityKey, seconds: float) -> None:
        counts, order = self._counts, self._order
        self._total += seconds
        if key in counts:
            counts[key] += seconds
            return
        if len(counts) >= COUNTERS:
            while order[0][0] != counts[order[0][1]]:
                heapq.heapreplace(order, (counts[order[0][1]], order[0][1]))
            smallest, gone = order[0]
            del counts[gone]
            counts[key] = smallest + seconds
            heapq.heapreplace(order, (counts[key], key))
        else:
            counts[key] = seconds
            heapq.heappush(order, (seconds, key))

    def fade(self) -> None:
        self._total *= FADE
        self._counts = {key: count * FADE for key, count in self._counts.items()}
        self._order = [(count, key) for key, count in self._counts.items()]
        heapq.heapify(self._order)

    def hottest(self, at_most: int) -> list[tuple[EntityKey, float]]:
        """With the share of all turns' time that each took, the largest first."""
        if not self._total:
            return []
        top = heapq.nlargest(at_most, self._counts.items(), key=lambda item: item[1])
        return [(key, count / self._total) for key, count in top]
