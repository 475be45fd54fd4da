"""The figures of the allocation at scale: what one round of a coordinator costs, on paper, without any cluster.

CPU time of the thread that plans: what else runs on the machine does not count.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from figures import Figure, in_seconds
from topic import Pace, Say

from atoll.sharding.allocation import Bounds, EvenAllocation, HostFacts, Plan, ShardFacts
from atoll.sharding.pinning import plan_with_pins

SEED = 1
HOSTS, SHARDS = 100, 4_096
ROUND_AIM_S = 0.05
"""A coordinator looks four times a second."""
MANY_HOSTS, MANY_SHARDS = 10_000, 1_000_000
"""Left out with --quick: half a minute."""
BUSY = 0.5
"""Of a core, per host in the mean. Shards differ by half of theirs."""
ROUNDS_MAX = 100


class Paper:
    """A cluster whose moves take no time."""

    def __init__(self, shards: int, mean_load: float) -> None:
        luck = random.Random(SEED)
        self.hosts: list[HostFacts] = []
        self.pins: dict[int, int | None] = {}
        self._loads = [luck.uniform(0.5, 1.5) * mean_load for _ in range(shards)]
        self._holders: list[int | None] = [None] * shards

    def round(self) -> tuple[Plan, float]:
        """Plan, and carry it out. Returns also what planning took, in seconds."""
        shards = [ShardFacts(shard, self._holders[shard], load) for shard, load in enumerate(self._loads)]
        began = time.thread_time()
        plan = plan_with_pins(EvenAllocation(), self.hosts, shards, Bounds(), self.pins)
        took_s = time.thread_time() - began
        for shard, host in plan.place.items():
            self._holders[shard] = host
        for move in plan.moves:
            self._holders[move.shard] = move.target
        return plan, took_s

    def settle(self) -> tuple[list[float], int]:
        """Round by round until there is nothing left to do. Returns what each took, and all moves."""
        took_s, moves = [], 0
        for _ in range(ROUNDS_MAX):
            plan, seconds = self.round()
            took_s.append(seconds)
            moves += len(plan.moves)
            if not plan.place and not plan.moves:
                return took_s, moves
        raise AssertionError(f"shards still move after {ROUNDS_MAX} rounds")


async def allocation(pace: Pace, _folder: Path, say: Say) -> list[Figure]:
    """All shards to be placed, nothing to do, a host gone, another one joined, a shard pinned."""
    figures = _at_scale(HOSTS, SHARDS, ROUND_AIM_S, say)
    return figures if pace.quick else figures + _at_scale(MANY_HOSTS, MANY_SHARDS, None, say)


def _at_scale(hosts: int, shards: int, aim_s: float | None, say: Say) -> list[Figure]:
    name = f"allocation of {shards:,} shards to {hosts:,} hosts"
    say(name)
    first = [HostFacts(incarnation) for incarnation in range(1, hosts + 1)]
    paper = Paper(shards, BUSY * hosts / shards)
    figures = []
    moves = {}
    joined = [*first[1:], HostFacts(hosts + 1)]
    pinned: dict[int, int | None] = {0: None}
    for what, present, pins in (
        ("all to be placed", first, {}),
        ("nothing to do", first, {}),
        ("a host gone", first[1:], {}),
        ("a host joined", joined, {}),
        ("a shard pinned", joined, pinned),
    ):
        paper.hosts, paper.pins = present, pins
        took_s, moves[what] = paper.settle()
        figures.append(in_seconds(f"{name}, {what}: slowest round of {len(took_s)}", max(took_s), aim_s))
    counted = ("a host joined", "a shard pinned")
    return figures + [Figure(name=f"{name}, {what}: moves", value=moves[what], unit="") for what in counted]
