"""The coordinator's decisions: facts and instants in, condemnations and assignments out."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from atoll.persistence.spi import Assignment, HostRow, HostState, ShardRow, ShardState
from atoll.sharding.coordinator import Coordinator, Decisions

LEASE_S = 3.0
GAP_S = 1.5
NOBODY: frozenset[int] = frozenset()


def host(incarnation: int, renewals: int = 0, state: HostState = HostState.LIVE, version: str = "") -> HostRow:
    return HostRow(incarnation, f"h{incarnation}:1", state, renewals, "n", None, version=version)


def owned(shard: int, by: int, epoch: int = 4) -> ShardRow:
    return ShardRow(shard, ShardState.OWNED, epoch, by, by, (by,), 0)


def assigned(shard: int, to: int, epoch: int = 4) -> ShardRow:
    return ShardRow(shard, ShardState.ASSIGNED, epoch, to, None, (), 0)


def free(shard: int, epoch: int = 4) -> ShardRow:
    return ShardRow(shard, ShardState.FREE, epoch, None, None, (), 0)


def watched(coordinator: Coordinator, rows: list[HostRow], began: float, until: float) -> Decisions:
    """Look every half second until `until`; return the last decisions."""
    decisions = Decisions()
    while began <= until:
        decisions = coordinator.decide(began, began + 0.1, rows, [], NOBODY)
        began += 0.5
    return decisions


def test_a_host_is_condemned_after_a_silent_lease_and_not_before() -> None:
    """PR14: silence runs from the end of the first read that saw the counter to the beginning of the newest."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    rows = [host(1, 7)]
    assert coordinator.decide(0.0, 1.0, rows, [], NOBODY) == Decisions()
    for began, ended in ((1.5, 1.6), (2.5, 2.6), (3.5, 3.9), (4.0, 9.0)):
        assert coordinator.decide(began, ended, rows, [], NOBODY) == Decisions(), began
    assert coordinator.decide(9.1, 9.2, rows, [], NOBODY) == Decisions(condemn=((1, 7),))


def test_the_end_of_the_first_read_counts_and_the_beginning_of_the_last() -> None:
    """PR14: the renewal may have happened at any instant of the first read; what happens during the last is not seen."""
    rows = [host(1)]
    coordinator = Coordinator(LEASE_S, 100.0)
    coordinator.decide(0.0, 2.0, rows, [], NOBODY)
    assert coordinator.decide(4.9, 10.0, rows, [], NOBODY).condemn == ()
    assert coordinator.decide(5.1, 5.2, rows, [], NOBODY).condemn == ((1, 0),)


def test_a_renewal_starts_the_count_again() -> None:
    """PR14: the counter is compared with itself; nothing but its standing still counts."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    for tick in range(40):
        rows = [host(1, renewals=tick // 5)]
        assert coordinator.decide(tick / 2, tick / 2 + 0.1, rows, [], NOBODY) == Decisions()


def test_after_a_gap_in_the_reads_all_counts_begin_anew() -> None:
    """PR14: an outage of the store would condemn every host at its end."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    rows = [host(1), host(2)]
    assert watched(coordinator, rows, 0.0, 2.5) == Decisions()
    assert coordinator.decide(60.0, 60.1, rows, [], NOBODY) == Decisions()
    assert watched(coordinator, rows, 60.5, 63.0) == Decisions()
    assert watched(coordinator, rows, 63.5, 64.0).condemn == ((1, 0), (2, 0))


def test_all_counts_begin_anew_when_a_condemnation_was_not_taken() -> None:
    """PR14: a store that takes no writes would condemn every host at its end; a new count is a whole lease."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    rows = [host(1), host(2)]
    assert watched(coordinator, rows, 0.0, 4.0).condemn == ((1, 0), (2, 0))
    coordinator.count_again()
    assert watched(coordinator, rows, 4.5, 7.5) == Decisions()
    assert watched(coordinator, rows, 8.0, 8.5).condemn == ((1, 0), (2, 0))


def test_a_new_coordinator_counts_from_its_own_first_look() -> None:
    """PR14: it knows nothing of the time before."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    assert coordinator.decide(1000.0, 1000.1, [host(1, 5)], [], NOBODY) == Decisions()


def test_a_proof_needs_no_waiting() -> None:
    """PR16: first-hand proof of death, and only of the host that it is about."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    decisions = coordinator.decide(0.0, 0.1, [host(1, 3), host(2)], [owned(0, 1)], frozenset({1}))
    assert decisions == Decisions(condemn=((1, 3),))


def test_condemn_first_assign_in_a_later_round() -> None:
    """PR14: the store has to confirm it (the host may have renewed meanwhile); then its shards have no home."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    shards = [owned(0, 1), assigned(1, 1), owned(2, 2)]
    first = coordinator.decide(0.0, 0.1, [host(1), host(2)], shards, frozenset({1}))
    assert first == Decisions(condemn=((1, 0),))
    second = coordinator.decide(0.2, 0.3, [host(1, state=HostState.GONE), host(2)], shards, frozenset({1}))
    assert second == Decisions(assign=(Assignment(0, 4, 2), Assignment(1, 4, 2)))


@pytest.mark.parametrize("state", [HostState.GONE, HostState.SEALED])
def test_hosts_that_are_not_live_get_nothing_and_are_not_condemned_again(state: HostState) -> None:
    """PR14: a condemned host can claim nothing."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    rows = [host(1, state=state), host(2)]
    decisions = coordinator.decide(0.0, 0.1, rows, [free(0), free(1)], NOBODY)
    assert {assignment.incarnation for assignment in decisions.assign} == {2}
    assert coordinator.decide(0.2, 0.3, rows[:1], [free(0)], NOBODY) == Decisions()


def test_a_silent_host_gets_nothing_in_the_round_that_condemns_it() -> None:
    """PR14: nor do its own shards move in it."""
    coordinator = Coordinator(LEASE_S, 100.0)
    rows = [host(1, 1), host(2, 1)]
    coordinator.decide(0.0, 0.1, rows, [], NOBODY)
    decisions = coordinator.decide(4.0, 4.1, [host(1, 1), host(2, 9)], [owned(0, 1), free(1)], NOBODY)
    assert decisions == Decisions(condemn=((1, 1),), assign=(Assignment(1, 4, 2),))


def test_free_shards_and_those_of_unknown_hosts_are_given_to_the_emptiest() -> None:
    """What is owned by, or assigned to, a live host stays; epochs are those that the decision was made on."""
    coordinator = Coordinator(LEASE_S, GAP_S)
    shards = [owned(0, 1), owned(1, 1), assigned(2, 2), free(3, epoch=9), owned(4, 99, epoch=6)]
    decisions = coordinator.decide(0.0, 0.1, [host(1), host(2)], shards, NOBODY)
    assert decisions == Decisions(assign=(Assignment(3, 9, 2), Assignment(4, 6, 1)))
    assert coordinator.decide(0.2, 0.3, [], shards, NOBODY) == Decisions()


def test_placements_prefer_the_version_that_was_asked_for_also_when_it_came_first() -> None:
    """S17: after a roll-back, or when an old host is made anew, the youngest host is not that of the new version."""
    rows = [host(5, version="wanted"), host(9, version="other")]
    (assignment,) = Coordinator(LEASE_S, GAP_S, version="wanted").decide(0.0, 0.1, rows, [free(0)], NOBODY).assign
    assert assignment.incarnation == 5
    (assignment,) = Coordinator(LEASE_S, GAP_S, version="other").decide(0.0, 0.1, rows, [free(0)], NOBODY).assign
    assert assignment.incarnation == 9


def test_a_move_is_not_cancelled_because_the_connection_to_its_target_blinks() -> None:
    """S13: the target is live; whether it takes the shard is decided once it answers again, or is condemned."""
    rows = [host(1), host(2)]
    shards = [owned(0, by=1), replace(owned(1, by=1), target=2)]
    coordinator = Coordinator(LEASE_S, GAP_S)
    assert coordinator.decide(0.0, 0.1, rows, shards, NOBODY, met=frozenset({1})).move == ()
    gone = [host(1), host(2, state=HostState.GONE)]
    (cancelled,) = coordinator.decide(0.2, 0.3, gone, shards, NOBODY, met=frozenset({1})).move
    assert (cancelled.shard, cancelled.incarnation) == (1, 1)


# ---- pins


def on(incarnation: int, node: str, version: str = "", *, draining: bool = False) -> HostRow:
    return replace(host(incarnation, version=version), node=node, draining=draining)


def wanted(decisions: Decisions) -> dict[int, tuple[int, str]]:
    """Shard -> where it is wanted now, and why."""
    reasons = {move.shard: move.reason.value for move in decisions.moves}
    return {move.shard: (move.incarnation, reasons[move.shard]) for move in decisions.move}


def test_a_pin_in_the_store_is_carried_out_by_whichever_coordinator_reads_it() -> None:
    """S11: it goes to the host on its node, and what that host has goes elsewhere; each move says why."""
    rows = [on(1, "a"), on(2, "b"), on(3, "c")]
    shards = [replace(owned(0, 1), pin="b"), owned(1, 1), owned(2, 2), owned(3, 3)]
    for _ in range(2):
        decisions = Coordinator(LEASE_S, GAP_S).decide(0.0, 0.1, rows, shards, NOBODY)
        assert wanted(decisions) == {0: (2, "pinned"), 2: (1, "room")}
    done = [replace(owned(0, 2, 6), pin="b"), owned(1, 1), owned(2, 1), owned(3, 3)]
    assert Coordinator(LEASE_S, GAP_S).decide(0.0, 0.1, rows, done, NOBODY) == Decisions()


@pytest.mark.parametrize("pin", ["", "a node that is gone"])
def test_a_pin_to_no_node_or_to_one_that_is_gone_holds_anywhere(pin: str) -> None:
    """S11, S15: also when hosts do not say on which node they are."""
    shards = [replace(owned(0, 1), pin=pin), owned(1, 1), owned(2, 2)]
    decisions = Coordinator(LEASE_S, GAP_S).decide(0.0, 0.1, [on(1, ""), on(2, "")], shards, NOBODY)
    assert wanted(decisions) == {1: (2, "room")}


def test_a_pinned_shard_follows_its_node_through_an_upgrade() -> None:
    """S17: the node's host of the old version drains: the shard goes to the new one beside it."""
    rows = [on(1, "a", "1", draining=True), on(2, "b", "1"), on(3, "a", "2"), on(4, "b", "2")]
    shards = [replace(owned(0, 1), pin="a"), owned(1, 2), owned(2, 4)]
    decisions = Coordinator(LEASE_S, GAP_S, version="2").decide(0.0, 0.1, rows, shards, NOBODY)
    assert wanted(decisions) == {0: (3, "pinned")}


def test_the_pinned_host_is_condemned_and_its_shard_is_assigned_at_once() -> None:
    """S03, S11: like any other shard, though the host that it comes to is not empty yet; that is emptied in the same
    round."""
    rows = [replace(on(1, "a"), state=HostState.GONE), on(2, "b"), on(3, "c")]
    shards = [replace(owned(0, 1), pin="a"), owned(1, 2), owned(2, 3), owned(3, 3)]
    decisions = Coordinator(LEASE_S, GAP_S).decide(0.0, 0.1, rows, shards, NOBODY)
    assert decisions.assign == (Assignment(0, 4, 2),)
    assert wanted(decisions) == {1: (3, "room")}


def test_the_connection_to_the_host_of_a_pinned_shard_blinks() -> None:
    """S11: nobody else is set apart for it meanwhile, and nothing goes to its host."""
    rows = [on(1, "a"), on(2, "b"), on(3, "c")]
    shards = [replace(owned(0, 1), pin="a"), owned(1, 2), owned(2, 3)]
    coordinator = Coordinator(LEASE_S, GAP_S)
    for met in ({2, 3}, {1, 2, 3}, {1}, {1, 2}):
        assert coordinator.decide(0.0, 0.1, rows, shards, NOBODY, met=frozenset(met)) == Decisions()
