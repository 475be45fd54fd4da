"""Which hosts there should be: one of the app's version on every node that may have one. Pure: rows in, steps out.

    node without one --start--> serves --(node drained, or node goes)--> drains
    host of another version --(every node has one of ours)--> drains --(serves nothing)--> ended

A node is *drained* by hand (`atoll drain`); its host stays, empty, so that nobody has to remember, until the drain is
undone or the node leaves. A node *goes* when Ray drains it; its host is ended when it is empty, since Ray ends a
drained node once nothing of it is used.

An upgrade is no more than a coordinator that wants another version than the hosts have, and so is going back. The hosts
of other versions drain one after the other, and only while every node has a host of ours: if the new code does not
start, or dies where it runs, the old one goes on and can take everything over again.

Rows are read one after the other, hosts before shards: a host that was seen draining gets nothing from then on, so one
that serves nothing in what was read afterwards may be ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..persistence.spi import HostRow, HostState, ShardRow


class Steps(msgspec.Struct, frozen=True):
    """What is to be done now. Each may be done twice, or not at all: the next look finds what is left."""

    start: tuple[str, ...] = ()
    """Nodes that need a host."""
    drain: tuple[int, ...] = ()
    """Incarnations."""
    undrain: tuple[int, ...] = ()
    end: tuple[tuple[str, str], ...] = ()
    """(node, version) of hosts that are not needed any more."""


def next_steps(
    version: str,
    nodes: Sequence[str],
    *,
    going: frozenset[str],
    drained: frozenset[str],
    hosts: Iterable[HostRow],
    shards: Sequence[ShardRow],
) -> Steps:
    """`nodes`: those that Ray lists and that have what the app requires. `shards` may be empty while no live host
    drains."""
    live = [host for host in hosts if host.state is HostState.LIVE]
    ours = [host for host in live if host.version == version]
    others = [host for host in live if host.version != version]
    wanted = [node for node in nodes if node not in going and node not in drained]
    missing = tuple(node for node in wanted if node not in {host.node for host in ours})
    serving = {row.owner for row in shards} | {row.assigned for row in shards}
    drain = [host.incarnation for host in ours if host.node in drained and not host.draining]
    undrain = [host.incarnation for host in ours if host.draining and host.node not in drained | going]
    if wanted and not missing and not any(host.draining and host.incarnation in serving for host in others):
        drain += sorted(host.incarnation for host in others if not host.draining)[:1]
    empty = [host for host in live if host.draining and host.incarnation not in serving]
    return Steps(
        start=missing,
        drain=tuple(drain),
        undrain=tuple(undrain),
        end=tuple((host.node, host.version) for host in empty if host.version != version or host.node in going),
    )


def drained_nodes(
    version: str, hosts: Iterable[HostRow], *, going: frozenset[str], told: frozenset[str]
) -> frozenset[str]:
    """The nodes drained by hand, as a coordinator that Ray restarted finds them: where the newest host is of our
    version, it drains or not; elsewhere `told`, what was so when this version was started."""
    newest = {host.node: host for host in sorted(hosts, key=_incarnation)}
    ours = {node: host for node, host in newest.items() if host.version == version and node not in going}
    return told - ours.keys() | {node for node, host in ours.items() if host.draining}


def _incarnation(host: HostRow) -> int:
    return host.incarnation
