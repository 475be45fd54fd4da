"""What a table row is after a checkpoint wrote another one over it: a newer one wins, whatever the order. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from .records import ClientRow, EntityRow


def leaves_state(row: EntityRow) -> bool:
    """Whether `row` says nothing of the state: events of an event-sourced entity without a new snapshot."""
    return row.state is None and row.state_seq == 0 and not row.deleted


def entity_after(stored: EntityRow | None, row: EntityRow) -> EntityRow:
    """An older or equal seq changes nothing; a row that says nothing of the state leaves the snapshot as it is."""
    if stored is None:
        return row
    if row.seq <= stored.seq:
        return stored
    return replace(row, state=stored.state, state_seq=stored.state_seq) if leaves_state(row) else row


def client_after(stored: ClientRow | None, row: ClientRow) -> ClientRow:
    """A row with a lower floor is an older one: the replies that it lacks or still has would be wrong too."""
    return stored if stored is not None and row.floor < stored.floor else row


def covered_seq(row: EntityRow | None) -> int:
    """Commits of the entity up to this seq are not needed to know what it is: a snapshot covers them, or a deletion."""
    if row is None:
        return 0
    return row.seq if row.deleted else row.state_seq
