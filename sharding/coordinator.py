"""The coordinator's decisions: whom to condemn, which shard to give to whom. Pure: facts and `now` in, decisions out.

Facts are rows read from the store and first-hand proofs of death. Nothing here is remembered but since when each host's
renewal counter stands still, so a coordinator may be restarted, doubled or late: the store takes a decision only if
the epoch (or counter) that it was made on still stands there.

A host is relieved in this order: condemn -> assign -> (the new owner's claim seals it). A silent host is condemned
after its lease, counted on this process's own monotonic clock and only while its own reads succeed: after a gap in the
reads the count starts again, else a store outage would condemn every host at its end. With first-hand proof of death
(its listener refuses connections, its process was seen to end) there is nothing to wait for. Ray's word alone proves
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..persistence.spi import Assignment, HostRow, HostState, ShardRow, ShardState
from .allocation import allocate


class Decisions(msgspec.Struct, frozen=True):
    condemn: tuple[tuple[int, int], ...] = ()
    """(incarnation, renewals): to be confirmed by the store before its shards are given away."""
    assign: tuple[Assignment, ...] = ()


class Coordinator:
    def __init__(self, lease_s: float, reads_gap_max_s: float) -> None:
        """`reads_gap_max_s`: a longer gap between two observations starts all counts again."""
        self._lease_s = lease_s
        self._reads_gap_max_s = reads_gap_max_s
        self._silent_since: dict[int, tuple[int, float]] = {}
        self._last_read = float("-inf")

    def decide(
        self, began: float, ended: float, hosts: Iterable[HostRow], shards: Sequence[ShardRow], dead: frozenset[int]
    ) -> Decisions:
        """`began`, `ended`: monotonic seconds before and after the rows were read. `dead`: proven first hand.

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
                live.append(host.incarnation)
        self._silent_since = seen
        known_live = set(live)
        homeless = []
        load = dict.fromkeys(live, 0)
        condemned = {incarnation for incarnation, _ in condemn}
        for row in shards:
            if row.state is ShardState.FREE:
                homeless.append(row)
                continue
            holder = row.owner if row.state is ShardState.OWNED else row.assigned
            if holder in known_live:
                load[holder] += 1
            elif holder not in condemned:  # a condemnation has to be confirmed first: the next round assigns
                homeless.append(row)
        placed = allocate([row.shard for row in homeless], load)
        epochs = {row.shard: row.epoch for row in homeless}
        return Decisions(
            tuple(condemn), tuple(Assignment(shard, epochs[shard], host) for shard, host in sorted(placed.items()))
        )
