"""History in tables.db: pieces and their index, as history_pieces.py makes them."""

from __future__ import annotations

from collections.abc import Sequence

from .history_pieces import DELETE_PIECES_MAX, index_of, own_commits, piece_blob, piece_commits, pieces_of, without
from .records import Commit
from .sqlite_file import Database


def add_history(database: Database, shard: int, commits: Sequence[Commit]) -> None:
    """Inside a transaction. The commits are new ones, in order of position."""
    for piece in pieces_of(commits):
        first, last = piece[0].position, piece[-1].position
        database.write("INSERT INTO history VALUES (?, ?, ?, ?)", (shard, first, last, piece_blob(shard, first, piece)))
        database.write_all(
            "INSERT INTO history_by_entity (shard, kind, id, last_seq, first_seq, first_position) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(shard, *entry, first) for entry in index_of(piece)],
        )


def delete_commits_slice(database: Database, shard: int, kind: str, id: str, through_seq: int) -> bool:
    """Inside a transaction: drop the oldest of an entity's commits up to `through_seq`; True when there are more."""
    pieces = database.rows(
        "SELECT first_position, first_seq, last_seq FROM history_by_entity "
        "WHERE shard = ? AND kind = ? AND id = ? ORDER BY last_seq LIMIT ?",
        (shard, kind, id, DELETE_PIECES_MAX + 1),
    )
    pieces = [piece for piece in pieces if piece[1] <= through_seq]
    for first_position, first_seq, last_seq in pieces[:DELETE_PIECES_MAX]:
        piece = _piece(database, shard, first_position)
        own = own_commits(shard, first_position, piece, kind, id, (first_seq, last_seq))
        left = without(piece, kind, id, through_seq)
        if left:
            database.write(
                "UPDATE history SET last_position = ?, row = ? WHERE shard = ? AND first_position = ?",
                (left[-1].position, piece_blob(shard, first_position, left), shard, first_position),
            )
        else:
            database.write("DELETE FROM history WHERE shard = ? AND first_position = ?", (shard, first_position))
        entry = (shard, kind, id, last_seq)
        if kept := [commit for commit in own if commit.seq > through_seq]:
            database.write(
                "UPDATE history_by_entity SET first_seq = ? WHERE shard = ? AND kind = ? AND id = ? AND last_seq = ?",
                (kept[0].seq, *entry),
            )
        else:
            database.write(
                "DELETE FROM history_by_entity WHERE shard = ? AND kind = ? AND id = ? AND last_seq = ?", entry
            )
    return len(pieces) > DELETE_PIECES_MAX


def read_commits(
    database: Database, shard: int, kind: str, id: str, after_seq: int, to_seq: int | None, limit: int | None
) -> list[Commit]:
    found: list[Commit] = []
    with database.snapshot():
        pieces = database.rows(
            "SELECT first_position, first_seq, last_seq FROM history_by_entity "
            "WHERE shard = ? AND kind = ? AND id = ? AND last_seq > ? ORDER BY last_seq",
            (shard, kind, id, after_seq),
        )
        for first_position, first_seq, last_seq in pieces:
            if (to_seq is not None and first_seq > to_seq) or (limit is not None and len(found) >= limit):
                break
            piece = _piece(database, shard, first_position)
            own = own_commits(shard, first_position, piece, kind, id, (first_seq, last_seq))
            found += [c for c in own if after_seq < c.seq and (to_seq is None or c.seq <= to_seq)]
    return found if limit is None else found[: max(limit, 0)]


def read_history(database: Database, shard: int, after_position: int, limit: int | None) -> list[Commit]:
    found: list[Commit] = []
    with database.snapshot():
        # Pieces do not overlap: the first one that can matter is the last that begins at or before the position.
        row = database.row(
            "SELECT max(first_position) FROM history WHERE shard = ? AND first_position <= ?", (shard, after_position)
        )
        first = (row[0] if row else None) or 0
        while limit is None or len(found) < limit:
            row = database.row(
                "SELECT first_position FROM history WHERE shard = ? AND first_position >= ? "
                "ORDER BY first_position LIMIT 1",
                (shard, first),
            )
            if row is None:
                break
            found += [commit for commit in _piece(database, shard, row[0]) if commit.position > after_position]
            first = row[0] + 1
    return found if limit is None else found[: max(limit, 0)]


def _piece(database: Database, shard: int, first_position: int) -> list[Commit]:
    row = database.row(
        "SELECT last_position, row FROM history WHERE shard = ? AND first_position = ?", (shard, first_position)
    )
    return piece_commits(shard, first_position, *(row or (None, None)))
