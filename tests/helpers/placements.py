"""A cluster on paper, to be planned for: who has which shard, what moves, and every plan checked before it is done."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from atoll.sharding.allocation import Bounds, EvenAllocation, HostFacts, Plan, Reason, ShardFacts
from atoll.sharding.pinning import plan_with_pins, seated

STRATEGY = EvenAllocation()


class Placements:
    """Hosts come and go in `hosts`; `loads` may be changed. Nothing is unowned for a reason of its own: what a host
    that goes had is homeless.
    """

    def __init__(self, hosts: Iterable[HostFacts], loads: Sequence[float], bounds: Bounds | None = None) -> None:
        self.hosts = {host.incarnation: host for host in hosts}
        self.loads = list(loads)
        self.bounds = bounds or Bounds()
        self.holders: dict[int, int | None] = dict.fromkeys(range(len(loads)))
        self.moving: dict[int, int] = {}
        self.moves = 0
        """Begun so far."""

    # ---- facts

    def facts(self, noise: random.Random | None = None) -> list[ShardFacts]:
        """With `noise`, as measured: each load is up to 10 % off."""
        loads = self.loads if noise is None else [load * noise.uniform(0.9, 1.1) for load in self.loads]
        return [ShardFacts(s, holder, loads[s], self.moving.get(s)) for s, holder in self.holders.items()]

    def eligible(self) -> list[HostFacts]:
        return [host for host in self.hosts.values() if host.eligible]

    def home(self, shard: int) -> int | None:
        """Where it is, or will be once its move is done. None: homeless."""
        holder = self.holders[shard]
        return None if holder not in self.hosts else self.moving.get(shard, holder)

    def counts(self) -> dict[int, int]:
        """Shards of each eligible host."""
        found = Counter(map(self.home, self.holders))
        return {host.incarnation: found[host.incarnation] for host in self.eligible()}

    def shares(self) -> dict[int, Fraction]:
        """By weight; a host whose part is less than one shard has one, while there are enough."""
        shares = {}
        left, weights = len(self.loads), sum(Fraction(host.weight) for host in self.eligible())
        enough = left >= len(self.eligible())
        for host in sorted(self.eligible(), key=lambda host: host.weight):
            share = left * Fraction(host.weight) / weights
            if enough and share < 1:
                share = Fraction(1)
                left, weights = left - 1, weights - Fraction(host.weight)
            shares[host.incarnation] = share
        return shares

    def levels(self) -> dict[int, float]:
        """Load of each eligible host relative to its share by weight: 1 is fair."""
        weights = sum(host.weight for host in self.eligible())
        found = dict.fromkeys((host.incarnation for host in self.eligible()), 0.0)
        for shard, load in enumerate(self.loads):
            if (home := self.home(shard)) in found:
                found[home] += load
        total = sum(self.loads) or 1.0
        return {i: load * weights / (total * self.hosts[i].weight) for i, load in found.items()}

    # ---- events

    def lose(self, incarnation: int) -> None:
        """It is gone; what it had is homeless, and what moved to it stays where it is."""
        del self.hosts[incarnation]

    def change(self, incarnation: int, *, eligible: bool) -> None:
        host = self.hosts[incarnation]
        self.hosts[incarnation] = HostFacts(incarnation, host.weight, eligible, host.version)

    # ---- rounds

    def plan(self, noise: random.Random | None = None) -> Plan:
        facts = self.facts(noise)
        plan = STRATEGY.plan(self.hosts.values(), facts, self.bounds)
        self._check(plan)
        return plan

    def begin(self, plan: Plan) -> None:
        """Give away what is homeless; moves are under way from now on."""
        for shard, host in plan.place.items():
            self.holders[shard] = host
            self.moving.pop(shard, None)
        for shard in plan.cancel:
            del self.moving[shard]
        self.moving.update((move.shard, move.target) for move in plan.moves)
        self.moves += len(plan.moves)

    def finish(self, shards: Iterable[int] | None = None) -> None:
        """End the moves of these shards, or all, as far as source and target are there."""
        for shard in list(self.moving) if shards is None else shards:
            if self.moving[shard] in self.hosts and self.holders[shard] in self.hosts:
                self.holders[shard] = self.moving.pop(shard)

    def settle(self, rounds_max: int) -> int:
        """Round by round, moves done at once, until there is nothing to do. Returns how many rounds did something."""
        for done in range(rounds_max + 1):
            plan = self.plan()
            if plan == Plan({}):
                return done
            self.begin(plan)
            self.finish()
        raise AssertionError(f"shards still move after {rounds_max} rounds")

    def settle_in_steps(self, luck: random.Random, rounds_max: int) -> None:
        """Plan again and again while moves end late and in any order."""
        for _ in range(rounds_max):
            plan = self.plan()
            self.begin(plan)
            if plan == Plan({}) and not self.moving:
                return
            if plan == Plan({}):
                self.finish()
            else:
                self.finish(luck.sample(sorted(self.moving), luck.randint(0, len(self.moving))))
        raise AssertionError("shards still move")

    # ---- promises

    def _check(self, plan: Plan) -> None:
        """What has to be so for every plan, whatever the facts."""
        eligible = {host.incarnation for host in self.eligible()}
        held = {shard for shard, holder in self.holders.items() if holder in self.hosts}
        homeless = self.holders.keys() - held
        lapsed = {shard for shard in held & self.moving.keys() if self.moving[shard] not in eligible}
        under_way = held & self.moving.keys() - lapsed
        moved = {move.shard for move in plan.moves}
        assert plan.place.keys() == (homeless if eligible else set())
        assert len(moved) == len(plan.moves)
        assert moved <= held - under_way
        assert set(plan.cancel) == lapsed - moved
        assert {*plan.place.values(), *(move.target for move in plan.moves)} <= eligible
        for move in plan.moves:
            assert move.source == self.holders[move.shard] != move.target
            assert (move.reason is Reason.LEAVING) == (move.source not in eligible)
        room = max(0, min(self.bounds.moves_per_round, self.bounds.moves_under_way - len(under_way)))
        assert len(moved) <= room
        leaving = {shard for shard in held - under_way if self.holders[shard] not in eligible}
        if eligible:
            assert len(moved & leaving) == min(room, len(leaving)), "who is to be empty comes first"

    def check_settled(self, *, even: bool) -> None:
        """What has to be so once there is nothing to do. `even`: loads are about equal, or unknown."""
        assert not self.moving
        eligible = self.eligible()
        if not eligible:
            return
        counts = self.counts()
        assert sum(counts.values()) == len(self.loads), "each shard is at one eligible host"
        if len(self.loads) >= len(eligible):
            assert min(counts.values()) > 0
        if even:
            for incarnation, share in self.shares().items():
                assert math.floor(share) <= counts[incarnation] <= math.ceil(share)
        elif sum(self.loads):
            self._check_cool(counts)

    def _check_cool(self, counts: dict[int, int]) -> None:
        """No host is hot and has a shard, with others beside it, that would fit into another one's share of the load."""
        loads: dict[int, list[float]] = {incarnation: [] for incarnation in counts}
        for shard, load in enumerate(self.loads):
            loads[self.holders[shard]].append(load)
        weights = sum(host.weight for host in self.eligible())
        share = {i: len(self.loads) * self.hosts[i].weight / weights for i in counts}
        fair = {i: sum(self.loads) * self.hosts[i].weight / weights for i in counts}
        room = max(
            (fair[i] - sum(loads[i]) for i in counts if counts[i] < self.bounds.count_times * share[i]), default=0.0
        )
        for i, mine in loads.items():
            rounded = fair[i] * math.ceil(share[i]) / share[i]
            aim = max(rounded, sum(load for load in mine if load > room))
            if sum(mine) > 1.001 * (aim + self.bounds.noise(aim)) and counts[i] > 1:
                assert not any(0 < load <= 0.999 * room for load in mine), (i, sum(mine), aim, room)


class PinnedPlacements(Placements):
    """Some of its shards are to have a host for themselves."""

    def __init__(self, hosts: Iterable[HostFacts], loads: Sequence[float], bounds: Bounds | None = None) -> None:
        super().__init__(hosts, loads, bounds)
        self.pins: dict[int, int | None] = {}

    def plan(self, noise: random.Random | None = None) -> Plan:
        facts = self.facts(noise)
        seats = seated(list(self.hosts.values()), facts, self.pins)
        plan = plan_with_pins(STRATEGY, self.hosts.values(), facts, self.bounds, self.pins)
        self._check_pinned(plan, seats)
        return plan

    def _check_pinned(self, plan: Plan, seats: dict[int, int]) -> None:
        """What has to be so for every plan, whatever the facts."""
        eligible = {host.incarnation for host in self.eligible()}
        held = {shard for shard, holder in self.holders.items() if holder in self.hosts}
        apart = set(seats.values())
        assert apart <= eligible
        assert len(apart) == len(seats) == min(len(self.pins), max(0, len(eligible) - 1))
        assert seats.keys() <= self.pins.keys()
        assert plan.place.keys() == (self.holders.keys() - held if eligible else set()), "nothing waits for a pin"
        moved = {move.shard for move in plan.moves}
        assert len(moved) == len(plan.moves)
        for shard, host in [*plan.place.items(), *((move.shard, move.target) for move in plan.moves)]:
            assert host in eligible
            assert host not in apart or seats.get(shard) == host, "it comes to where another one is to be alone"
        under_way = {s for s in held & self.moving.keys() if self.moving[s] in eligible}
        stays = {s for s in under_way if s in seats or self.moving[s] not in apart}
        assert not moved & stays
        room = max(0, min(self.bounds.moves_per_round, self.bounds.moves_under_way - len(stays)))
        assert len(moved) <= room
        assert set(plan.cancel) <= held & self.moving.keys() - moved - stays
        leaving = {s for s in held - under_way if self.holders[s] not in eligible}
        if len(leaving) >= room:
            begun = {move.shard for move in plan.moves if move.reason is Reason.ROOM}
            assert begun <= self.moving.keys(), "who drains goes first, those aside whose handoff has begun"
        for move in plan.moves:
            assert move.source == self.holders[move.shard] != move.target
            assert (move.reason is Reason.PINNED) == (move.shard in seats)
            if move.reason is not Reason.PINNED:
                assert (move.reason is Reason.ROOM) == (move.source in apart)
                assert (move.reason is Reason.LEAVING) == (move.source not in eligible)

    def alone(self) -> dict[int, int]:
        """Pinned shard -> the host that it has for itself."""
        counts = self.counts()
        return {s: home for s in self.pins if (home := self.home(s)) is not None and counts.get(home) == 1}

    def check_settled(self, *, even: bool) -> None:
        """As many pinned shards as possible are alone, those with a wish where they want to be; the others are with the
        other hosts, as if there were only those."""
        assert not self.moving
        eligible = {host.incarnation for host in self.eligible()}
        if not eligible:
            return
        assert {self.home(shard) for shard in self.holders} <= eligible
        alone = self.alone()
        assert len(alone) >= min(len(self.pins), len(eligible) - 1)
        wishes = Counter(self.pins.values())
        if len(self.pins) < len(eligible):
            for shard, wish in self.pins.items():
                assert wish not in eligible or wishes[wish] > 1 or alone[shard] == wish
        seats = seated(list(self.hosts.values()), self.facts(), self.pins)
        assert seats.items() <= alone.items()
        rest = sorted(self.holders.keys() - seats.keys())
        others = Placements(
            [host for host in self.eligible() if host.incarnation not in seats.values()],
            [self.loads[shard] for shard in rest],
            self.bounds,
        )
        others.holders = {index: self.holders[shard] for index, shard in enumerate(rest)}
        others.check_settled(even=even)
