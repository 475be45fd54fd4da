"""Which hosts are started, drained and ended: single looks, and whole upgrades and ways back played on paper."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import msgspec
import pytest

from atoll.cluster.rollout import Steps, drained_nodes, next_steps
from atoll.persistence.spi import HostRow, HostState, ShardRow, ShardState

NODES = ("a", "b", "c")
NONE: frozenset[str] = frozenset()


def row(incarnation: int, node: str, version: str = "1", *, draining: bool = False, live: bool = True) -> HostRow:
    state = HostState.LIVE if live else HostState.GONE
    return HostRow(incarnation, f"{node}:1", state, 0, node, None, draining, version)


def owned(*owners: int) -> list[ShardRow]:
    return [ShardRow(n, ShardState.OWNED, 1, owner, owner, (owner,), 0) for n, owner in enumerate(owners)]


def look(
    version: str,
    hosts: Iterable[HostRow],
    shards: Sequence[ShardRow] = (),
    *,
    nodes: Sequence[str] = NODES,
    going: frozenset[str] = NONE,
    drained: frozenset[str] = NONE,
) -> Steps:
    return next_steps(version, nodes, going=going, drained=drained, hosts=hosts, shards=shards)


def test_every_node_gets_a_host_and_only_one() -> None:
    assert look("1", []) == Steps(start=NODES)
    assert look("1", [row(1, "a"), row(2, "c")]) == Steps(start=("b",))
    assert look("1", [row(1, "a", live=False), row(2, "b"), row(3, "c")]) == Steps(start=("a",))
    assert look("1", [row(1, "a"), row(2, "b"), row(3, "c")], owned(1, 2, 3)) == Steps()


def test_a_drained_node_keeps_its_host_and_gets_no_other() -> None:
    """A host that registered after the node was drained is drained as well; one that ended is not replaced."""
    hosts = [row(1, "a"), row(2, "b"), row(3, "c")]
    assert look("1", hosts, drained=frozenset("b")) == Steps(drain=(2,))
    hosts[1] = row(2, "b", draining=True)
    assert look("1", hosts, owned(1, 3), drained=frozenset("b")) == Steps()
    del hosts[1]
    assert look("1", hosts, owned(1, 3), drained=frozenset("b")) == Steps()
    assert look("1", hosts, owned(1, 3)) == Steps(start=("b",))


def test_a_drain_that_is_undone() -> None:
    hosts = [row(1, "a"), row(2, "b", draining=True), row(3, "c")]
    assert look("1", hosts, owned(1, 3)) == Steps(undrain=(2,))


def test_the_host_of_a_node_that_goes_is_ended_when_it_is_empty() -> None:
    """Ray ends a node that it drains once nothing of it is used. Marking the host is the coordination's part."""
    going = frozenset("b")
    hosts = [row(1, "a"), row(2, "b", draining=True), row(3, "c")]
    assert look("1", hosts, owned(1, 2), going=going) == Steps()
    assert look("1", hosts, owned(1, 3), going=going) == Steps(end=(("b", "1"),))
    assert look("1", [hosts[0], hosts[2]], going=going) == Steps()


def test_a_shard_that_is_only_assigned_to_a_host_keeps_it_alive() -> None:
    assigned = [ShardRow(0, ShardState.ASSIGNED, 2, 1, None, (), 0)]
    old = row(1, "a", draining=True)
    assert look("2", [old, row(2, "a", "2")], assigned, nodes="a") == Steps()
    assert look("2", [old, row(2, "a", "2")], owned(2), nodes="a") == Steps(end=(("a", "1"),))


def test_old_hosts_drain_only_while_every_node_has_a_new_one() -> None:
    """S17: one after the other; none when a new host is missing, so that the old ones can take everything over."""
    old = [row(1, "a"), row(2, "b"), row(3, "c")]
    new = [row(4, "a", "2"), row(5, "b", "2")]
    assert look("2", [*old, *new], owned(1, 2, 3)) == Steps(start=("c",))
    new.append(row(6, "c", "2"))
    assert look("2", [*old, *new], owned(1, 2, 3)) == Steps(drain=(1,))
    old[0] = row(1, "a", draining=True)
    assert look("2", [*old, *new], owned(1, 2, 3)) == Steps()
    assert look("2", [*old, *new], owned(4, 2, 3)) == Steps(drain=(2,), end=(("a", "1"),))
    assert look("2", [*old, *new[:2]], owned(4, 2, 3)) == Steps(start=("c",), end=(("a", "1"),))


def test_an_old_host_on_a_drained_node_ends_without_a_successor() -> None:
    old = [row(1, "a"), row(2, "b", draining=True)]
    assert look("2", [*old, row(3, "a", "2")], owned(1), nodes="ab", drained=frozenset("b")) == Steps(
        drain=(1,), end=(("b", "1"),)
    )


@pytest.mark.parametrize("seed", range(50))
def test_an_upgrade_played_on_paper_comes_to_its_end(seed: int) -> None:
    """S17: hosts that die at random and shards that move one by one, to the new version or, half way, back to the old:
    in the end each node has one host of the version that is wanted, none drains, all is served; and while old hosts
    drain, somebody may always have shards."""
    luck = random.Random(seed)
    rows: dict[int, HostRow] = {n: row(n, node, "1") for n, node in enumerate(NODES, 1)}
    owners = [luck.choice([1, 2, 3]) for _ in range(12)]
    wanted = "2"
    turn_back = luck.choice([None, *range(1, 30)])
    deaths = sorted(luck.sample(range(1, 40), 4))
    for step in range(300):
        if step == turn_back:
            wanted = "1"
        if deaths and step == deaths[0]:
            deaths.pop(0)
            victim = luck.choice(sorted(rows))
            rows.pop(victim)
            eligible = [n for n in rows if not rows[n].draining]
            owners = [luck.choice(eligible) if o == victim and eligible else o for o in owners]
        steps = look(wanted, rows.values(), owned(*owners))
        for node in steps.start:
            fresh = 1 + max([0, *rows, *owners])
            rows[fresh] = row(fresh, node, wanted)
        for incarnation in steps.drain:
            rows[incarnation] = msgspec.structs.replace(rows[incarnation], draining=True)
        for incarnation in steps.undrain:
            rows[incarnation] = msgspec.structs.replace(rows[incarnation], draining=False)
        for node, version in steps.end:
            ended = [n for n, host in rows.items() if (host.node, host.version) == (node, version)]
            assert not set(ended) & set(owners), f"seed {seed}: a host was ended that served"
            for incarnation in ended:
                del rows[incarnation]
        eligible = [n for n in rows if not rows[n].draining]
        leaving = [s for s, o in enumerate(owners) if o not in rows or rows[o].draining]
        if leaving and eligible:
            owners[luck.choice(leaving)] = luck.choice(eligible)
        if steps.drain:
            assert eligible, f"seed {seed}: nobody may have shards any more"
    hosts = sorted((host.node, host.version, host.draining) for host in rows.values())
    assert hosts == [(node, wanted, False) for node in NODES], f"seed {seed}"
    assert set(owners) <= rows.keys(), f"seed {seed}"


# ---- what a coordinator that was restarted finds


def test_a_restarted_coordinator_knows_what_was_drained_by_hand() -> None:
    """By the newest host of each node, dead or alive, if it is of our version."""
    hosts = [row(1, "a"), row(2, "b", draining=True), row(3, "c", draining=True, live=False)]
    assert drained_nodes("1", hosts, going=NONE, told=NONE) == {"b", "c"}
    assert drained_nodes("1", hosts, going=frozenset("b"), told=NONE) == {"c"}, "what Ray drains is not drained by hand"
    hosts.append(row(4, "c"))
    assert drained_nodes("1", hosts, going=NONE, told=frozenset("abc")) == {"b"}


def test_old_hosts_that_an_upgrade_drains_make_no_drained_node() -> None:
    """S17: not even when the new host of that node is gone; what was drained before the upgrade stays so."""
    hosts = [row(1, "a", draining=True), row(2, "b", draining=True), row(3, "a", "2")]
    assert drained_nodes("2", hosts, going=NONE, told=NONE) == NONE
    assert drained_nodes("2", hosts[:2], going=NONE, told=frozenset("b")) == {"b"}
