"""The coordinator's decisions: whom to condemn, which shard goes where. Pure: facts and `now` in, decisions out.

Facts are rows read from the store and first-hand proofs of death. Nothing here is remembered but since when each host's
renewal counter stands still, so a coordinator may be restarted, doubled or late: the store takes a decision only if
the epoch (or counter) that it was made on still stands there.

A host is relieved in this order: condemn -> assign -> (the new owner's claim seals it). A silent host is condemned
after its lease, counted on this process's own monotonic clock and only while its own reads succeed: after a gap in the
reads the count starts again, and so it does when the store did not take a condemnation: else a store outage would
condemn every host at its end. With first-hand proof of death
(its listener refuses connections, its process was seen to end) there is nothing to wait for. Ray's word alone proves
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ..persistence.spi import Assignment, HostRow, HostState, ShardRow, ShardState
from .allocation import AllocationStrategy, Bounds, EvenAllocation, HostFacts, Move, Plan, ShardFacts
from .pinning import plan_with_pins


class Decisions(msgspec.Struct, frozen=True):
    condemn: tuple[tuple[int, int], ...] = ()
    """(incarnation, renewals): to be confirmed by the store before its shards are given away."""
    assign: tuple[Assignment, ...] = ()
    move: tuple[Assignment, ...] = ()
    """Targets for shards that are served; a cancelled move has the owner for its target."""
    moves: tuple[Move, ...] = ()
    """Why: those of `move` that were not cancelled."""


class Coordinator:
    def __init__(
        self,
        lease_s: float,
        reads_gap_max_s: float,
        bounds: Bounds | None = None,
        strategy: AllocationStrategy | None = None,
        version: str = "",
    ) -> None:
        """`reads_gap_max_s`: a longer gap between two observations starts all counts again. `version`: of the app;
        hosts that run it are preferred to those that run another one."""
        self._version = version
        self._lease_s = lease_s
        self._reads_gap_max_s = reads_gap_max_s
        self._bounds = bounds or Bounds()
        self._strategy = strategy or EvenAllocation()
        self._silent_since: dict[int, tuple[int, float]] = {}
        self._last_read = float("-inf")

    def count_again(self) -> None:
        """All silences begin now: so far nobody could renew."""
        self._silent_since.clear()

    def decide(
        self,
        began: float,
        ended: float,
        hosts: Iterable[HostRow],
        shards: Sequence[ShardRow],
        dead: frozenset[int],
        *,
        met: frozenset[int] | None = None,
        loads: Mapping[int, float] | None = None,
    ) -> Decisions:
        """`began`, `ended`: monotonic seconds before and after the rows were read. `dead`: proven first hand. `met`:
        hosts that answer right now (None: all live ones); to others nothing is given, nor anything taken from them on
        purpose. `loads`: CPU seconds per second of each shard, as far as known.

        A silence runs from the end of the first read that saw the counter to the beginning of the newest one: the
        renewal may have happened at any instant of the former, so counting from its beginning would cut leases short.
        """
        if began - self._last_read > self._reads_gap_max_s:
            self._silent_since.clear()
        self._last_read = ended
        condemn = []
        live = []
        seen = {}
        for host in hosts:
            if host.state is not HostState.LIVE:
                continue
            renewals, since = self._silent_since.get(host.incarnation, (-1, ended))
            if renewals != host.renewals:
                since = ended
            seen[host.incarnation] = (host.renewals, since)
            if host.incarnation in dead or began - since > self._lease_s:
                condemn.append((host.incarnation, host.renewals))
            else:
                live.append(host)
        self._silent_since = seen
        condemned = frozenset(incarnation for incarnation, _ in condemn)
        plan, epochs = self._plan(live, shards, condemned, met, loads or {})
        owners = {row.shard: row.owner for row in shards if row.state is ShardState.OWNED and row.owner is not None}
        moves = tuple(move for move in plan.moves if move.shard in owners)
        return Decisions(
            tuple(condemn),
            tuple(Assignment(shard, epochs[shard], host) for shard, host in sorted(plan.place.items())),
            (
                *(Assignment(move.shard, epochs[move.shard], move.target) for move in moves),
                *(Assignment(shard, epochs[shard], owners[shard]) for shard in plan.cancel if shard in owners),
            ),
            moves,
        )

    def _plan(
        self,
        live: Sequence[HostRow],
        shards: Sequence[ShardRow],
        condemned: frozenset[int],
        met: frozenset[int] | None,
        loads: Mapping[int, float],
    ) -> tuple[Plan, dict[int, int]]:
        """The round's plan, and the epoch of each shard that it may speak of."""
        known = [host for host in live if met is None or host.incarnation in met]
        taking_part = {host.incarnation for host in known}
        silent = {host.incarnation for host in live} - taking_part | condemned
        facts = []
        epochs = {}
        pinned: dict[int, str] = {}
        for row in shards:
            holder = row.holder
            if holder in silent or row.target in silent:
                continue  # a condemnation has to be confirmed, a connection to come back: a later round decides
            epochs[row.shard] = row.epoch
            if row.pin is not None:
                pinned[row.shard] = row.pin
            holder = holder if holder in taking_part else None
            facts.append(ShardFacts(row.shard, holder, loads.get(row.shard, 0.0), row.target))
        hosts = [
            HostFacts(
                host.incarnation,
                host.weight,
                eligible=not host.draining,
                version=int(host.version == self._version),
            )
            for host in known
        ]
        on_node = {  # of several hosts the one that stays: of the app's version, then the youngest
            host.node: host.incarnation
            for host in sorted(known, key=lambda host: (host.version == self._version, host.incarnation))
            if not host.draining
        }
        pins = {shard: on_node.get(node) if node else None for shard, node in pinned.items()}
        return plan_with_pins(self._strategy, hosts, facts, self._bounds, pins), epochs
