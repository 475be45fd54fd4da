"""Shards that are to have a host for themselves, around whichever strategy places the others. Pure.

    pins --> seats: pinned shard -> host that is set apart for it
    seated shard                           --> placed there, or moved there     (PINNED)
    all else of a host that is set apart   --> moved away as from one that is to be empty   (ROOM)
                                               but after those that drain
    all other shards                       --> the strategy's, over the other hosts

One eligible host always remains for the other shards: of more pins than there are such hosts the last ones, by number,
are shards like all others until there is room. So are all when only one host is left; no shard waits for its pin.

**Which host.** The one on the wanted node, if that may have shards and is not another pin's; then any. Any is the one
that takes the fewest moves until the shard is alone, so mostly where it is, or an empty host that just joined; of equal
ones the newest code, then the least loaded. Nothing is remembered between rounds: what was begun has become the choice
of the fewest moves, and a shard that is alone keeps its host while there is room for one such shard at all. So plans
come to an end, and nothing goes back and forth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from ..persistence.spi import HostRow, HostState, ShardRow
from .allocation import AllocationStrategy, Bounds, HostFacts, Move, Plan, Reason, ShardFacts

Pins = Mapping[int, int | None]
"""Pinned shard -> the incarnation on its node; None: on no node, or on one that has no host now."""


def plan_with_pins(
    strategy: AllocationStrategy, hosts: Iterable[HostFacts], shards: Iterable[ShardFacts], bounds: Bounds, pins: Pins
) -> Plan:
    """As `AllocationStrategy.plan`, with the same promises. Pins of shards that are not among the facts wait."""
    if not pins:
        return strategy.plan(hosts, shards, bounds)
    hosts, shards = list(hosts), list(shards)
    seating = _Seating(hosts, shards, pins)
    seats = seating.decided()
    if not seats:
        return strategy.plan(hosts, shards, bounds)
    apart = set(seats.values())
    own = _plan_seated(seating, bounds)
    waits = apart if seating.leaving and seating.leaving >= own.budget else ()  # who drains goes first
    others = strategy.plan(
        [replace(host, eligible=host.eligible and host.incarnation not in apart) for host in hosts],
        [s for s in shards if s.shard not in seats and not (s.holder in waits and s.moving_to is None)],
        own.left,
    )
    room = (replace(move, reason=Reason.ROOM) if move.source in apart else move for move in others.moves)
    return Plan(
        {**own.plan.place, **others.place},
        (*own.plan.moves, *room),
        tuple(sorted((*own.plan.cancel, *others.cancel))),
    )


def seated(hosts: Sequence[HostFacts], shards: Sequence[ShardFacts], pins: Pins) -> dict[int, int]:
    """Pinned shard -> the host that it is to have alone, different ones; fewer than there are eligible hosts."""
    return _Seating(hosts, shards, pins).decided()


# ---- which host for whom


class _Seating:
    """Who sits where, while it is decided. Moves under way count as done."""

    def __init__(self, hosts: Sequence[HostFacts], shards: Sequence[ShardFacts], pins: Pins) -> None:
        self._pins = pins
        self._hosts = {host.incarnation: host for host in hosts if host.eligible}
        self.present = {host.incarnation for host in hosts}
        self.seats: dict[int, int] = {}
        self.pinned: dict[int, ShardFacts] = {}
        self.homes: dict[int, int | None] = {}
        """Of the pinned shards: where each is or is going; None where it may not stay."""
        self.coming: Counter[int] = Counter()
        """Moves under way, by target."""
        self.leaving = 0
        """Shards of hosts that are to be empty for another reason than a pin."""
        self._counts = dict.fromkeys(self._hosts, 0)
        self._loads = dict.fromkeys(self._hosts, 0.0)
        self._read(shards)
        first = sorted(self.homes, key=lambda shard: (not self._is_content(shard), shard))
        self._waiting = first[: max(0, len(self._hosts) - 1)]

    def _read(self, shards: Iterable[ShardFacts]) -> None:
        """One plain pass: there may be a million."""
        present, eligible, pins, counts, loads = self.present, self._hosts, self._pins, self._counts, self._loads
        for shard in shards:
            home = shard.holder if shard.holder in present else None
            if home is not None and shard.moving_to is not None and shard.moving_to in eligible:
                home = shard.moving_to
                self.coming[home] += 1
            if home is not None and home not in eligible:
                home = None
                self.leaving += 1
            if home is not None:
                counts[home] += 1
                loads[home] += shard.load
            if shard.shard in pins:
                self.pinned[shard.shard] = shard
                self.homes[shard.shard] = home

    def _is_content(self, shard: int) -> bool:
        """It is alone where it is wanted. Others do not take that away."""
        home, wish = self.homes[shard], self._pins[shard]
        return home is not None and self._counts[home] == 1 and (wish == home or wish not in self._hosts)

    def decided(self) -> dict[int, int]:
        self._seat_wishes()
        self._seat_others()
        return self.seats

    def _seat_wishes(self) -> None:
        for shard in list(self._waiting):
            wish = self._pins[shard]
            if wish is not None and wish in self._hosts and wish not in self.seats.values():
                self._seat(shard, wish)

    def _seat_others(self) -> None:
        """Those first that are nearest to being alone. What one of the rest may be sitting on is not taken from it."""
        for shard in sorted(self._waiting, key=self._to_go):
            here = self.homes[shard]
            kept = {self.homes[other] for other in self._waiting} - {here}
            free = self._hosts.keys() - self.seats.values() - kept
            self._seat(shard, min(free, key=lambda host: self._price(host, here)))

    def _seat(self, shard: int, host: int) -> None:
        self.seats[shard] = host
        self._waiting.remove(shard)

    def _to_go(self, shard: int) -> tuple[bool, int, int]:
        home = self.homes[shard]
        return home is None, 0 if home is None else self._counts[home], shard

    def _price(self, host: int, here: int | None) -> tuple[float, ...]:
        """Moves until a shard that is `here` is alone on `host`; then what else is to be said."""
        moves = self._counts[host] - 1 if host == here else self._counts[host] + (here is not None)
        return moves, host != here, -self._hosts[host].version, self._loads[host], host


# ---- what is to be done for it


class _Seated(msgspec.Struct, frozen=True):
    plan: Plan
    """Of the shards that have a seat."""
    left: Bounds
    """For the moves of all others,"""
    budget: int
    """of which so many may begin now."""


def _plan_seated(seating: _Seating, bounds: Bounds) -> _Seated:
    place: dict[int, int] = {}
    moves: list[Move] = []
    cancel: list[int] = []
    seats = seating.seats
    mine = {shard: seating.pinned[shard] for shard in sorted(seats)}
    begun = {shard for shard, facts in mine.items() if _is_begun(facts, seating.homes[shard])}
    # Of the others' moves those count that go on: not those to hosts that are set apart now.
    going_on = seating.coming.total() - sum(seating.coming[seat] for seat in seats.values())
    going_on += sum(mine[shard].moving_to in seats.values() for shard in begun)
    budget = max(0, min(bounds.moves_per_round, bounds.moves_under_way - going_on))
    for shard, facts in mine.items():
        if facts.holder is None or facts.holder not in seating.present:
            place[shard] = seats[shard]
        elif shard in begun:
            continue  # wherever to: it ends soon
        elif facts.holder != seats[shard] and len(moves) < budget:
            moves.append(Move(shard, facts.holder, seats[shard], Reason.PINNED))
        elif facts.moving_to is not None:
            cancel.append(shard)
    left = replace(
        bounds,
        moves_under_way=max(0, bounds.moves_under_way - len(begun) - len(moves)),
        moves_per_round=bounds.moves_per_round - len(moves),
    )
    return _Seated(Plan(place, tuple(moves), tuple(cancel)), left, budget - len(moves))


def _is_begun(facts: ShardFacts, home: int | None) -> bool:
    return home is not None and home == facts.moving_to != facts.holder


# ---- asked for, and shown


class PinState(msgspec.Struct, frozen=True):
    """A pin as the store's rows have it now."""

    shard: int
    node: str
    """Where it is wanted; "" for any."""
    host: int | None
    """Incarnation: who has the shard, or is to claim it."""
    at: str
    """The node of that host."""
    beside: int
    """Other shards of that host; 0 while there is none."""

    @property
    def is_alone(self) -> bool:
        """It has what was asked for."""
        return self.host is not None and not self.beside and self.node in ("", self.at)


def pin_states(hosts: Iterable[HostRow], shards: Sequence[ShardRow]) -> list[PinState]:
    nodes = {host.incarnation: host.node for host in hosts}
    pinned = [row for row in shards if row.pin is not None]
    counts = Counter(row.holder for row in shards) if pinned else Counter[int | None]()
    states = []
    for row in pinned:
        assert row.pin is not None
        host = row.holder
        beside = 0 if host is None else counts[host] - 1
        states.append(PinState(row.shard, row.pin, host, "" if host is None else nodes.get(host, ""), beside))
    return states


def not_there(shard: int, shards: int) -> str:
    """Why there is no such shard in an app of so many; empty when there is."""
    return "" if 0 <= shard < shards else f"shard {shard} does not exist: there are shards 0 to {shards - 1}"


def why_not(shard: int, node: str | None, hosts: Iterable[HostRow], shards: Sequence[ShardRow]) -> str:
    """Why a shard of these cannot be pinned to `node` ("" for any), or unpinned (None): one line, empty when it can be.

    As many shards are pinned as can be alone with one node left for all others; nodes that go later take nothing back.
    """
    pins = {row.shard: row.pin for row in shards if row.pin is not None}
    if node is None:
        return "" if shard in pins else f"shard {shard} is not pinned"
    nodes = {host.node for host in hosts if host.state is HostState.LIVE and not host.draining}
    if shard in pins:
        return f"shard {shard} is pinned already, to {named(pins[shard])}: `atoll unpin` takes that back"
    if node and node not in nodes:
        return f"{named(node)} has no host that may have shards"
    for other, its in pins.items():
        if node and its == node:
            return f"{named(node)} is for shard {other} alone: name another node, or unpin that"
    if len(pins) + 1 >= len(nodes):
        pinned = f"{len(pins)} shard{' is' if len(pins) == 1 else 's are'} pinned"
        return (
            f"{pinned}, {len(nodes)} node{'' if len(nodes) == 1 else 's'} may have shards, and one must remain for all "
            "others: unpin one, or let a node join"
        )
    return ""


def named(node: str) -> str:
    return f"node {node[:12]}" if node else "any node"
