"""History in tables.db: the commits of a checkpoint, packed in pieces, and an index that says which hold an entity's.

A piece is named by the position where it began when it was written. Pieces of a shard do not overlap. Deleting an
entity's commits takes them out of the pieces that they share with others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ..actors.errors import CorruptRecord
from .records import Commit
from .sqlite_file import Database
from .sqlite_rows import check_same, decoded, encoded

HISTORY_PIECE_BYTES = 256 << 10
"""A piece of packed history ends above this: who wants one entity's commits decodes whole pieces."""
DELETE_PIECES_MAX = 8
"""Pieces rewritten in one transaction: up to 2 MiB, so that other hosts do not wait long behind it."""

_decoder = msgspec.msgpack.Decoder(list[Commit])


def add_history(database: Database, shard: int, commits: Sequence[Commit]) -> None:
    """Inside a transaction. The commits are new ones, in order of position."""
    for piece in _pieces(commits):
        first, last = piece[0].position, piece[-1].position
        database.write(
            "INSERT INTO history VALUES (?, ?, ?, ?)", (shard, first, last, encoded(piece, _place(shard, first)))
        )
        seqs: dict[tuple[str, str], tuple[int, int]] = {}
        for commit in piece:
            first_seq, _last_seq = seqs.get((commit.kind, commit.id), (commit.seq, 0))
            seqs[commit.kind, commit.id] = first_seq, commit.seq
        database.write_all(
            "INSERT INTO history_by_entity (shard, kind, id, last_seq, first_seq, first_position) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(shard, *key, last_seq, first_seq, first) for key, (first_seq, last_seq) in sorted(seqs.items())],
        )


def _pieces(commits: Sequence[Commit]) -> Iterable[list[Commit]]:
    """Cut commits into runs of about `HISTORY_PIECE_BYTES` of events."""
    piece: list[Commit] = []
    size = 0
    for commit in commits:
        piece.append(commit)
        size += sum(len(event.data) for event in commit.events) + len(commit.id) + 64
        if size >= HISTORY_PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


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
        _check_index(shard, first_position, _of(piece, kind, id), (first_seq, last_seq))
        left = [c for c in piece if (c.kind, c.id) != (kind, id) or c.seq > through_seq]
        if left:
            database.write(
                "UPDATE history SET last_position = ?, row = ? WHERE shard = ? AND first_position = ?",
                (left[-1].position, encoded(left, _place(shard, first_position)), shard, first_position),
            )
        else:
            database.write("DELETE FROM history WHERE shard = ? AND first_position = ?", (shard, first_position))
        entry = (shard, kind, id, last_seq)
        if own := _of(left, kind, id):
            database.write(
                "UPDATE history_by_entity SET first_seq = ? WHERE shard = ? AND kind = ? AND id = ? AND last_seq = ?",
                (own[0].seq, *entry),
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
            own = _of(_piece(database, shard, first_position), kind, id)
            _check_index(shard, first_position, own, (first_seq, last_seq))
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
    place = _place(shard, first_position)
    row = database.row(
        "SELECT last_position, row FROM history WHERE shard = ? AND first_position = ?", (shard, first_position)
    )
    if row is None:
        raise CorruptRecord(f"{place}: missing though the index names it; restore this store from a backup")
    piece = decoded(_decoder, row[1], place)
    check_same(place, piece[-1].position if piece else None, row[0])
    return piece


def _of(piece: list[Commit], kind: str, id: str) -> list[Commit]:
    return [commit for commit in piece if (commit.kind, commit.id) == (kind, id)]


def _check_index(shard: int, first_position: int, own: list[Commit], seqs: tuple[int, int]) -> None:
    check_same(_place(shard, first_position), (own[0].seq, own[-1].seq) if own else None, seqs)


def _place(shard: int, first_position: int) -> str:
    return f"history of shard {shard} from position {first_position}"
