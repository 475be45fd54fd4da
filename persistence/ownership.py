"""The life of a shard's row and of a host's state, as functions. Pure: the stores perform what is decided here.

    FREE --assign*--> ASSIGNED --claim--> OWNED --release*--> FREE, or ASSIGNED to its target      (* epoch + 1)
                        |   ^             |  | ^
                        +---+ assign*     |  +-+ move: sets or clears its target
                                          +--assign*--> ASSIGNED

A pin is set and taken away beside all that, and stays through all of it.

What a host's row says stands elsewhere: the store looks whether it is LIVE or eligible, and tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable

from msgspec.structs import replace

from .records import Commit
from .spi import Assignment, CheckpointEnd, HostRow, HostState, ShardRow, ShardState
from .stripes import Stripe

Step = Callable[[ShardRow, Assignment], ShardRow | None]
"""`assigned` or `moved`: the row after a decision, None when that changes nothing."""


def checked_shard(shard: int, shards: int, stripe: Stripe) -> int:
    """Return `shard` if it is one of the app's `shards` and lies in this stripe, else raise `ValueError`: the caller
    hashed by another shard count, or asks the wrong database."""
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} does not exist: this store has shards 0 to {shards - 1}")
    if shard not in stripe:
        raise ValueError(f"shard {shard} does not exist here: {stripe.named} holds every {stripe.count}th shard")
    return shard


def checked_weight(weight: float) -> float:
    """Return `weight` if shares can be computed from it, else raise `ValueError`."""
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"a host's weight is a finite number above 0, not {weight}")
    return weight


def eligible(host: HostRow | None) -> bool:
    """Whether shards may be given to the host with this row (None: it has none)."""
    return host is not None and host.state is HostState.LIVE and not host.draining


def unowned(shard: int) -> ShardRow:
    """The row of a shard that nobody has owned yet."""
    return ShardRow(shard, ShardState.FREE, epoch=0, assigned=None, owner=None, owners=(), position=0)


def assigned(row: ShardRow, assignment: Assignment) -> ShardRow | None:
    """The row after the assignment, or None when the decision was made on another epoch."""
    if row.epoch != assignment.expected_epoch:
        return None
    return replace(
        row, state=ShardState.ASSIGNED, epoch=row.epoch + 1, assigned=assignment.incarnation, owner=None, target=None
    )  # owners and p stay: what was not released must still be sealed and read


def moved(row: ShardRow, move: Assignment) -> ShardRow | None:
    """The row after the move, or None when that changes nothing: it was decided on another epoch, nobody owns the
    shard, or it says so already. Without a `target` it needs no eligible host: the shard stays where it is."""
    if row.epoch != move.expected_epoch or row.state is not ShardState.OWNED:
        return None
    target = None if move.incarnation == row.owner else move.incarnation
    return None if target == row.target else replace(row, target=target)


def pinned(row: ShardRow, node: str | None) -> ShardRow | None:
    """The row with this pin, or None when it says so already. Every other transition keeps the pin."""
    return None if node == row.pin else replace(row, pin=node)


def decided(
    step: Step,
    row_of: Callable[[int], ShardRow],
    decisions: Iterable[Assignment],
    eligible: Container[int],
) -> dict[int, ShardRow]:
    """The rows, by shard, that decisions of one kind (`assigned` or `moved`) change, one after the other. `eligible`:
    the incarnations that may be given shards; a decision for another one changes nothing."""
    changed: dict[int, ShardRow] = {}
    for decision in decisions:
        row = step(changed.get(decision.shard) or row_of(decision.shard), decision)
        if row is None:
            continue
        heir = row.target if row.state is ShardState.OWNED else row.assigned
        if heir is None or heir in eligible:
            changed[row.shard] = row
    return changed


def claimed(row: ShardRow, incarnation: int, epoch: int) -> ShardRow | None:
    """The row after the claim, or None when it is not this incarnation's to take. A repeat gives the row as it is."""
    if row.epoch != epoch or row.assigned != incarnation or row.state is ShardState.FREE:
        return None
    if row.state is ShardState.OWNED:
        return row
    before = tuple(owner for owner in row.owners if owner != incarnation)
    return replace(row, state=ShardState.OWNED, owner=incarnation, owners=(*before, incarnation))


def may_write(row: ShardRow, incarnation: int, epoch: int) -> bool:
    """Whether a checkpoint of `incarnation`, made under `epoch`, may touch the shard's tables (rule 7)."""
    return row.state is ShardState.OWNED and row.owner == incarnation and row.epoch == epoch


def fresh_commits(row: ShardRow, end: CheckpointEnd) -> tuple[Commit, ...]:
    """Those of `end.commits` that history does not hold yet. Raises `ValueError` when they are not in order of
    position, or lie above `end.position`: then the caller would lose them when it lets go of the log."""
    last = 0
    for commit in end.commits:
        if not last < commit.position <= end.position:
            raise ValueError(
                f"shard {row.shard}: commit at position {commit.position} after {last}, in a checkpoint through "
                f"{end.position}: commits are given in order of position, none above it"
            )
        last = commit.position
    return tuple(commit for commit in end.commits if commit.position > row.position)


def ended(row: ShardRow, incarnation: int, end: CheckpointEnd, *, target_eligible: bool) -> ShardRow:
    """The row after the last part of a checkpoint. With `release` the shard is its target's to claim, and nobody's
    when it has none or the target is not eligible (any more)."""
    position = max(row.position, end.position)
    if end.release:
        heir = row.target if target_eligible else None
        return replace(
            row,
            state=ShardState.FREE if heir is None else ShardState.ASSIGNED,
            epoch=row.epoch + 1,
            assigned=heir,
            owner=None,
            owners=(),
            position=position,
            target=None,
        )
    return replace(row, owners=(incarnation,), position=position)


def loaded(row: ShardRow, epoch: int, end: CheckpointEnd) -> ShardRow:
    """The row of a shard without an owner after a part of an import: p and epoch as they were elsewhere."""
    return replace(row, epoch=max(row.epoch, epoch), position=max(row.position, end.position))


def condemned(state: HostState, renewals: int, observed: int) -> HostState:
    """A host's state after someone who saw `observed` renewals wants it condemned."""
    return HostState.GONE if state is HostState.LIVE and renewals == observed else state
