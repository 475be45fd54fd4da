"""The transitions of a shard's row, all of them, from every row that can be reached: no store, no luck."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.persistence import ownership
from atoll.persistence.spi import Assignment, CheckpointEnd, ShardRow, ShardState

HOSTS = (1, 2, 3)
EPOCH_MAX = 3
ADDS_TO_EPOCH = {"assign": 1, "move": 0, "claim": 0, "write": 0, "release": 1}


def transitions(row: ShardRow, epoch: int) -> Iterator[tuple[str, int, ShardRow | None]]:
    """(what, by or for whom, the row after it) of every call that names `epoch`; None where it is refused."""
    for host in HOSTS:
        decision = Assignment(row.shard, epoch, host)
        yield "assign", host, ownership.assigned(row, decision)
        yield "move", host, ownership.moved(row, decision)
        yield "claim", host, ownership.claimed(row, host, epoch)
        may = ownership.may_write(row, host, epoch)
        for eligible in (True, False):
            for what, end in ("write", CheckpointEnd(1)), ("release", CheckpointEnd(0, release=True)):
                yield what, host, ownership.ended(row, host, end, target_eligible=eligible) if may else None


def reachable() -> set[ShardRow]:
    rows, new = set(), {ownership.unowned(0)}
    while new:
        rows |= new
        new = {
            after
            for row in new
            for _what, _host, after in transitions(row, row.epoch)
            if after is not None and after.epoch <= EPOCH_MAX
        } - rows
    return rows


ROWS = reachable()


def test_every_row_is_one_of_three_kinds() -> None:
    """S13: whatever was called in whatever order: an owner only where it is OWNED, a target only there and never the owner
    itself, and whom to seal without a host twice."""
    assert {row.state for row in ROWS} == set(ShardState)
    assert {row.target for row in ROWS} == {None, *HOSTS}
    for row in ROWS:
        match row.state:
            case ShardState.FREE:
                assert (row.assigned, row.owner, row.owners, row.target) == (None, None, (), None)
            case ShardState.ASSIGNED:
                assert row.assigned is not None
                assert (row.owner, row.target) == (None, None)
            case ShardState.OWNED:
                assert row.assigned == row.owner == row.owners[-1] != row.target
        assert len(set(row.owners)) == len(row.owners)


def test_each_step_keeps_what_its_successors_need() -> None:
    """PR12, S13: the epoch grows where the row says so and nowhere else; p never falls; who owned the shard stays to be
    sealed until an owner has written or released everything."""
    for row in ROWS:
        for what, _host, after in transitions(row, row.epoch):
            if after is None:
                continue
            assert after.epoch == row.epoch + ADDS_TO_EPOCH[what]
            assert after.position >= row.position
            if what in {"assign", "move", "claim"}:
                assert set(row.owners) <= set(after.owners)


def test_a_call_that_was_decided_on_another_epoch_is_refused() -> None:
    """S13: late, early or doubled, it changes nothing."""
    for row in ROWS:
        for epoch in range(-1, EPOCH_MAX + 3):
            if epoch != row.epoch:
                assert all(after is None for _what, _host, after in transitions(row, epoch))


def test_nobody_but_the_owner_gives_a_shard_up() -> None:
    """S13: an owner leaves the row by its own release, to its target if that is eligible, or by an assignment."""
    for row in ROWS:
        for what, host, after in transitions(row, row.epoch):
            if after is None or row.owner is None or after.owner == row.owner:
                continue
            assert what == "assign" or (what, host) == ("release", row.owner)
            if what == "release":
                assert after.assigned in {None, row.target}
                assert after.owners == ()
