"""Which host gets which shard that has none: a pure function, even, and the same for the same facts."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence


def allocate(homeless: Sequence[int], load: Mapping[int, int]) -> dict[int, int]:
    """Give each homeless shard to the host with the fewest shards (`load`: incarnation -> shards it has).

    Returns shard -> incarnation; empty when there is no host. Ties go to the lower incarnation.
    """
    heap = [(shards, incarnation) for incarnation, shards in load.items()]
    heapq.heapify(heap)
    placed = {}
    for shard in sorted(homeless):
        if not heap:
            break
        shards, incarnation = heap[0]
        placed[shard] = incarnation
        heapq.heapreplace(heap, (shards + 1, incarnation))
    return placed
