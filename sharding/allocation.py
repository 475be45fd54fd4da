"""Which host gets which shard: facts in, a plan out. Pure, and the same for the same facts in whatever order they come.

    homeless shard                       --> placed, at once and without bound: nothing has to be handed over
    shard of a host that is to be empty  --> moved  \\
    host with too many shards            --> moved   > in this order, within the bounds on moves
    host with too much load              --> moved  /

A plan is one round. Whoever carries it out asks again with the new facts; with unchanged ones the plans come to an end,
and nothing moves any more. Nothing is remembered between rounds, so a coordinator may be restarted or doubled.

**By count.** A host's share is its part of all shards by weight. Its target is the share rounded down or up, up where
that saves a move; no target is 0 while there are enough shards. Only what is above a target moves, and only to where
something is missing, so no other plan needs fewer moves. Where the loads of shards differ by more than noise, counts
say less, and a host may be off its target by a little (a quarter of the noise that loads may have).

**By load**, where it was measured. A host above its share of the load by more than noise gives shards away until it is
above by half of that. They go where most room is: the lightest that is enough of those that fit, else the heaviest that
fits. A shard that fits nowhere stays, and its host may end up alone with it. Nobody gets shards for the sake of its
count that would make it hot, so a host that is short of shards because these are hot is left so.

Stopping well before what would begin the opposite is why the rules do not undo each other, and why loads that change
from round to round by as much as noise send nothing back and forth. A host that happens to stand at its very bound may
still give something away, once: whoever measures should smooth.

Heaviest first, wherever several are placed (LPT: R. L. Graham, Bounds on multiprocessing timing anomalies, 1969). It is
also the order in which a leaving host is emptied: should it be lost before it is empty, what has to fail over is what
is used least. Bounds on the moves of a round, and moving only from above to below the share, are those of Pekko's
LeastShardAllocationStrategy.
"""

from __future__ import annotations

import enum
import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

SPREAD = 0.3
"""Shards whose loads have a smaller coefficient of variation are even: host by host their sums differ by noise."""

ROUNDING = 1e-6
"""Shares that are this close to a whole number of shards are that number: weights are floating point."""


class HostFacts(msgspec.Struct, frozen=True):
    """A live host. One that is gone is left out; so are the shards of one whose end is not settled yet."""

    incarnation: int
    weight: float = 1.0
    """Above 0. Its share of shards and load is its part of the weights of all eligible hosts."""
    eligible: bool = True
    """May get shards: it is not draining, and is what the shards ask for. One that is not loses those it has."""
    version: int = 0
    """Rank of its code. Of hosts that lack shards those with the highest get them first, up to the same share."""


class ShardFacts(msgspec.Struct, frozen=True, gc=False):  # holds no references, and there may be a million
    shard: int
    holder: int | None = None
    """Incarnation. None, or one that is not among the hosts: the shard is homeless, and `moving_to` means nothing."""
    load: float = 0.0
    """CPU seconds per second; 0 when unknown."""
    moving_to: int | None = None
    """The target of a move under way. The shard counts as there already."""


class Bounds(msgspec.Struct, frozen=True):
    moves_under_way: int = 64
    """A move costs its senders a short gap, and its target a recovery: only so many at the same time."""
    moves_per_round: int = 64
    """A plan rests on facts that its own moves change: only so many before looking again."""
    load_excess: float = 0.2
    """Relative noise: a host's load may be this part above its share."""
    load_min: float = 0.1
    """Absolute noise, in CPU seconds per second: less than a tenth of a core is no reason to move anything."""
    count_times: float = 2.0
    """No host gets more than this many times its share of shards, however light they are; none gives its last away."""

    def noise(self, load: float) -> float:
        """By how much a load may differ from `load` and mean the same."""
        return max(self.load_excess * load, self.load_min)


class Reason(enum.StrEnum):
    LEAVING = "leaving"
    """Its host is to be empty."""
    COUNT = "count"
    """Its host has more than its share of the shards."""
    LOAD = "load"
    """Its host has more than its share of the load."""
    PINNED = "pinned"
    """It is to be alone on another host (pinning.py)."""
    ROOM = "room"
    """Its host is to be a pinned shard's alone."""


class Move(msgspec.Struct, frozen=True):
    shard: int
    source: int
    target: int
    reason: Reason


class Plan(msgspec.Struct, frozen=True):
    place: Mapping[int, int]
    """Homeless shard -> incarnation. All of them, or none when no host is eligible."""
    moves: tuple[Move, ...] = ()
    """To be begun, the most urgent first. A shard that is moving already gets a new target: its old one lapsed."""
    cancel: tuple[int, ...] = ()
    """Shards whose move lapsed, as its target is gone or not eligible any more, and that get no new one this time."""


class AllocationStrategy(Protocol):
    """Who goes where. Whatever a strategy plans is safe, as the store decides; the promises are those of usefulness.

    Every shard is given or moved to eligible hosts only, and by itself at most once in a plan; moves stay within the
    bounds, those under way included; with unchanged facts the plans come to an end.
    """

    def plan(self, hosts: Iterable[HostFacts], shards: Iterable[ShardFacts], bounds: Bounds) -> Plan:
        """One round. Incarnations and shards are unique, weights are above 0, loads are finite and at least 0."""
        ...


class EvenAllocation:
    """The default: even by weight, then by load, as the module says. O((hosts + shards) log)."""

    def plan(self, hosts: Iterable[HostFacts], shards: Iterable[ShardFacts], bounds: Bounds) -> Plan:
        draft = _Draft(hosts, shards, bounds)
        if draft.takers:
            draft.set_targets()
            draft.place_homeless()
            draft.empty_leaving()
            draft.even_counts()
            draft.even_loads()
        return draft.plan()


class _Host:
    """A host as the draft has it: moves under way and planned ones count as done."""

    __slots__ = (
        "_sorted",
        "arriving",
        "cool",
        "count",
        "eligible",
        "fair",
        "incarnation",
        "load",
        "most",
        "settled",
        "share",
        "slack",
        "target",
        "version",
        "weight",
    )

    def __init__(self, facts: HostFacts) -> None:
        assert facts.weight > 0, facts
        self.incarnation = facts.incarnation
        self.weight = facts.weight
        self.eligible = facts.eligible
        self.version = facts.version
        self.count = 0
        self.load = 0.0
        self.settled: list[ShardFacts] = []
        """What it has and could give away."""
        self.arriving = 0.0
        """The largest load among those that are on their way here."""
        self.share = 0.0
        """Of the shards, not rounded."""
        self.fair = 0.0
        """Share of the load."""
        self.cool = 0.0
        """A load that is no reason yet to keep shards away."""
        self.target = 0
        self.slack = 0
        """By how many shards it may be off its target."""
        self.most = 0
        """Shards that it may come to have for the sake of loads."""
        self._sorted = False

    @property
    def level(self) -> float:
        """Its load relative to its share of it."""
        return self.load / self.fair if self.fair else 0.0

    @property
    def room(self) -> float:
        """Load that is missing to its share."""
        return self.fair - self.load

    def sort(self) -> None:
        if not self._sorted:
            self.settled.sort(key=_by_load)
            self._sorted = True

    def hottest(self) -> float:
        """The largest load among its shards; `settled` is sorted."""
        return max(self.arriving, self.settled[-1].load if self.settled else 0.0)

    def receive(self, shard: ShardFacts) -> None:
        self.count += 1
        self.load += shard.load
        self.arriving = max(self.arriving, shard.load)

    def give(self, index: int) -> ShardFacts:
        shard = self.settled.pop(index)
        self.count -= 1
        self.load -= shard.load
        return shard


_Heap = list[tuple[tuple[float, ...], _Host]]
"""Hosts by a key that ends in the incarnation, so that no two are equal."""


class _Draft:
    """One plan while it is made."""

    def __init__(self, hosts: Iterable[HostFacts], shards: Iterable[ShardFacts], bounds: Bounds) -> None:
        self._bounds = bounds
        self._hosts = {facts.incarnation: _Host(facts) for facts in sorted(hosts, key=_incarnation)}
        self.takers = [host for host in self._hosts.values() if host.eligible]
        self._homeless: list[ShardFacts] = []
        self._leaving: list[ShardFacts] = []
        self._lapsed: set[int] = set()
        self._place: dict[int, int] = {}
        self._moves: list[Move] = []
        self._shards = 0
        self._load = 0.0
        self._squares = 0.0
        self._mean = 0.0
        self._uneven = False
        under_way = self._read(sorted(shards, key=_number))  # sums of loads are the same in one order only
        self._budget = max(0, min(bounds.moves_per_round, bounds.moves_under_way - under_way))

    def _read(self, shards: Sequence[ShardFacts]) -> int:
        """Count who has what. Returns how many moves are under way."""
        under_way = 0
        for shard in shards:
            self._load += shard.load
            self._squares += shard.load * shard.load
            holder = None if shard.holder is None else self._hosts.get(shard.holder)
            if holder is None:
                self._homeless.append(shard)
                continue
            if shard.moving_to is not None:
                target = self._hosts.get(shard.moving_to)
                if target is not None and target.eligible:
                    under_way += 1
                    target.receive(shard)
                    continue
                self._lapsed.add(shard.shard)
            if holder.eligible:
                holder.count += 1
                holder.load += shard.load
                holder.settled.append(shard)
            else:
                self._leaving.append(shard)
        self._shards = len(shards)
        return under_way

    # ---- how many

    def set_targets(self) -> None:
        """A whole number of shards for every eligible host; together they are all shards."""
        weights = sum(host.weight for host in self.takers)
        self._mean = self._load / self._shards if self._shards else 0.0
        self._uneven = self._are_uneven()
        left = self._shards
        up = []
        for host, exact in self._exact(weights):
            host.target = math.floor(exact + ROUNDING)
            left -= host.target
            if exact - host.target > ROUNDING:
                up.append(host)
        assert 0 <= left <= len(up), (left, len(up))
        up.sort(key=lambda host: (host.count <= host.target, -host.version, host.incarnation))
        for host in up[:left]:
            host.target += 1
        for host in self.takers:
            host.share = self._shards * host.weight / weights
            host.most = max(1, math.ceil(self._bounds.count_times * host.share))
            host.slack = math.ceil(host.share * self._bounds.load_excess / 4) if self._uneven else 0
            host.fair = self._mean * max(host.share, min(host.target, math.ceil(host.share)))
            host.cool = host.fair + self._bounds.noise(host.fair) / 2

    def _exact(self, weights: float) -> Iterator[tuple[_Host, float]]:
        """Each host's part of the shards by weight, but 1 for those whose part is less, while there are enough."""
        shards = self._shards
        enough = shards >= len(self.takers)
        for host in sorted(self.takers, key=lambda host: host.weight):
            exact = shards * host.weight / weights
            if enough and exact < 1:
                exact = 1.0
                shards -= 1
                weights -= host.weight
            yield host, exact

    def _are_uneven(self) -> bool:
        """Whether the loads of shards differ by more than noise, over the whole cluster: luck hardly changes that."""
        if self._load <= self._bounds.load_min * len(self.takers):
            return False
        return self._shards * self._squares > (1 + SPREAD**2) * self._load**2

    # ---- those that have to go somewhere

    def place_homeless(self) -> None:
        for shard, host in self._fill(self._homeless):
            self._place[shard.shard] = host.incarnation

    def empty_leaving(self) -> None:
        """Those first whose handoff has begun (towards a host that is gone since), then the heaviest."""
        first = heapq.nsmallest(
            self._budget, self._leaving, key=lambda shard: (shard.shard not in self._lapsed, *_heaviest(shard))
        )
        for shard, host in self._fill(first):
            assert shard.holder is not None
            self._move(shard, shard.holder, host, Reason.LEAVING)

    def _fill(self, shards: Sequence[ShardFacts]) -> Iterator[tuple[ShardFacts, _Host]]:
        """Give each to the host in most need."""
        if not shards:
            return
        needy = [(_need(host), host) for host in self.takers]
        heapq.heapify(needy)
        for shard in sorted(shards, key=_heaviest):
            host = needy[0][1]
            host.receive(shard)
            heapq.heapreplace(needy, (_need(host), host))
            yield shard, host

    # ---- those that could stay

    def even_counts(self) -> None:
        """Until nobody is off its target by more than its slack: first who lacks more, then who has more."""
        self._even(_surplus, lambda host: _lack(host) - min(host.slack, max(0, host.target - 1)))  # 0 is never slack
        self._even(lambda host: _surplus(host) - host.slack, _lack)

    def _even(self, surplus: Callable[[_Host], int], lack: Callable[[_Host], int]) -> None:
        """Move from hosts with a surplus, the greatest first, to those with a lack."""
        if not self._budget:
            return
        needy: _Heap = [(_need(host), host) for host in self.takers if lack(host) > 0]
        givers: _Heap = [((-surplus(host), host.incarnation), host) for host in self.takers if surplus(host) > 0]
        heapq.heapify(needy)
        heapq.heapify(givers)
        while self._budget and needy and givers:
            giver, taker = givers[0][1], needy[0][1]
            giver.sort()
            index = self._nearest(giver, taker)
            if index is not None:
                self._hand_over(giver, index, taker, Reason.COUNT)
                _renew(givers, (-surplus(giver), giver.incarnation), stays=surplus(giver) > 0)
                _renew(needy, _need(taker), stays=lack(taker) > 0)
            elif giver.settled and giver.settled[0].load <= self._mean:
                heapq.heappop(needy)  # it has no room for a shard like any other
            else:
                heapq.heappop(givers)  # all that it has are on their way here, or are heavy

    def _fits(self, taker: _Host) -> float:
        """The load of the largest shard that it may be given: a hot host would only have to give it away again.

        Shards so light that a whole share of them is a quarter of noise fit everywhere.
        """
        taker.sort()
        aim = max(taker.fair, taker.hottest())
        noise = self._bounds.noise(aim)
        limit = aim if self._uneven else aim + noise / 2
        return max(noise / 4 / taker.share, limit - taker.load)

    def _nearest(self, giver: _Host, taker: _Host) -> int | None:
        """The shard that brings the taker nearest to its load: as much as each missing one should bring, not more than
        its limit.
        """
        wanted = max(0.0, taker.room / (taker.target - taker.count))
        fitting = len(giver.settled)
        if taker.count:  # an empty host takes anything: the lightest of two is no worse there
            fitting = bisect_right(giver.settled, self._fits(taker), key=_load)
        above = bisect_left(giver.settled, wanted, hi=fitting, key=_load)
        near = [index for index in (above - 1, above) if 0 <= index < fitting]
        return min(near, key=lambda index: abs(giver.settled[index].load - wanted), default=None)

    def even_loads(self) -> None:
        """The hottest host first, each until it is cool, so that few are left half way when the bound is reached."""
        if not self._budget:
            return
        suspects = []
        cold: _Heap = []
        for host in self.takers:
            if host.load > host.fair + self._bounds.noise(host.fair):
                host.sort()
                suspects.append(host)
            elif host.count < host.most:
                cold.append(((-host.room, host.incarnation), host))
        heapq.heapify(cold)
        suspects.sort(key=lambda host: (-host.level, host.incarnation))
        for giver in suspects:
            self._cool(giver, cold)

    def _cool(self, giver: _Host, cold: _Heap) -> None:
        begun = False
        while self._budget and cold and giver.count > 1:
            taker = cold[0][1]
            index = self._worth_moving(giver, taker, begun=begun)
            if index is None:
                return
            self._hand_over(giver, index, taker, Reason.LOAD)
            _renew(cold, (-taker.room, taker.incarnation), stays=taker.count < taker.most)
            begun = True

    def _worth_moving(self, giver: _Host, taker: _Host, *, begun: bool) -> int | None:
        """Of the shards that fit, the lightest that is enough, else the heaviest. Enough is what leaves the host with
        its share, or with what fits nowhere.

        Where several that fit nowhere are together, they are parted first: the lightest of them goes, if even the taker
        with it would be less hot than the giver by more than noise.
        """
        fitting = bisect_right(giver.settled, taker.room, key=_load)
        heavy = [shard.load for shard in giver.settled[fitting:]]
        if giver.arriving > taker.room:
            heavy.append(giver.arriving)
        aim = max(giver.fair, sum(heavy))
        if len(heavy) > 1 and fitting < len(giver.settled) and aim > giver.cool:
            then = taker.load + giver.settled[fitting].load
            if then + self._bounds.noise(then) < giver.level * taker.fair:
                return fitting
        excess = giver.load - aim
        if excess <= self._bounds.noise(aim) / (2 if begun else 1):
            return None
        measured = bisect_right(giver.settled, 0.0, key=_load)
        enough = bisect_left(giver.settled, excess - self._bounds.noise(aim) / 2, lo=measured, key=_load)
        return min(enough, fitting - 1) if measured < fitting else None

    # ---- the outcome

    def _hand_over(self, giver: _Host, index: int, taker: _Host, reason: Reason) -> None:
        shard = giver.give(index)
        taker.receive(shard)
        self._move(shard, giver.incarnation, taker, reason)

    def _move(self, shard: ShardFacts, source: int, target: _Host, reason: Reason) -> None:
        self._moves.append(Move(shard.shard, source, target.incarnation, reason))
        self._budget -= 1

    def plan(self) -> Plan:
        moved = {move.shard for move in self._moves}
        return Plan(self._place, tuple(self._moves), tuple(sorted(self._lapsed - moved)))


def _need(host: _Host) -> tuple[float, ...]:
    """Sorts hosts, who gets the next shard first: one that lacks shards and is not hot, the newest code first.

    Together they lack enough for all, but some may be short because their shards are hot: then others get more.
    """
    count = host.count / host.share
    cool = host.load <= host.cool
    if cool and host.count < host.target:
        return 0, -host.version, host.level, count, host.incarnation
    return (1 if cool and host.count < host.most else 2), 0, count, host.level, host.incarnation


def _renew(heap: _Heap, key: tuple[float, ...], *, stays: bool) -> None:
    """The first host of the heap has a new place in it, or none."""
    if stays:
        heapq.heapreplace(heap, (key, heap[0][1]))
    else:
        heapq.heappop(heap)


def _surplus(host: _Host) -> int:
    return host.count - host.target


def _lack(host: _Host) -> int:
    return host.target - host.count


def _number(shard: ShardFacts) -> int:
    return shard.shard


def _incarnation(host: HostFacts) -> int:
    return host.incarnation


def _load(shard: ShardFacts) -> float:
    return shard.load


def _by_load(shard: ShardFacts) -> tuple[float, int]:
    return shard.load, shard.shard


def _heaviest(shard: ShardFacts) -> tuple[float, int]:
    return -shard.load, shard.shard
