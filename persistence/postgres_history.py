"""History in PostgreSQL: pieces and their index, as history_pieces.py makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .history_pieces import DELETE_PIECES_MAX, index_of, own_commits, piece_blob, piece_commits, pieces_of, without
from .records import Commit

if TYPE_CHECKING:
    from .postgres_link import Connection

READ_PIECES = 8
"""Pieces read at a time: 2 MiB."""

_ADD_PIECES = "INSERT INTO history SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[])"
_ADD_INDEX = """
INSERT INTO history_by_entity (shard, kind, id, last_seq, first_seq, first_position)
SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[])
"""
_PIECES_OF_ENTITY = """
SELECT i.first_position, i.first_seq, i.last_seq, h.last_position, h.row
FROM history_by_entity i LEFT JOIN history h ON h.shard = i.shard AND h.first_position = i.first_position
WHERE i.shard = $1 AND i.kind = $2 AND i.id = $3 AND i.last_seq > $4 ORDER BY i.last_seq
"""
_PAGE_OF_ENTITY = f"{_PIECES_OF_ENTITY} LIMIT $5"
# Pieces do not overlap: the first one that can matter is the last that begins at or before the position.
_FIRST_PIECE = "SELECT coalesce(max(first_position), 0) FROM history WHERE shard = $1 AND first_position <= $2"
_PIECES_OF_SHARD = """
SELECT first_position, last_position, row FROM history WHERE shard = $1 AND first_position >= $2
ORDER BY first_position LIMIT $3
"""
_SHORTEN_ENTRY = """
UPDATE history_by_entity SET first_seq = $5 WHERE shard = $1 AND kind = $2 AND id = $3 AND last_seq = $4
"""
_DELETE_ENTRY = "DELETE FROM history_by_entity WHERE shard = $1 AND kind = $2 AND id = $3 AND last_seq = $4"


def piece_rows(shard: int, commits: Sequence[Commit]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """New commits of a shard in order of position, as rows of `history` and of `history_by_entity`."""
    pieces: list[tuple[Any, ...]] = []
    index: list[tuple[Any, ...]] = []
    for piece in pieces_of(commits):
        first, last = piece[0].position, piece[-1].position
        pieces.append((shard, first, last, piece_blob(shard, first, piece)))
        index += [
            (shard, kind.encode(), id.encode(), last_seq, first_seq, first)
            for kind, id, last_seq, first_seq in index_of(piece)
        ]
    return pieces, index


async def add_history(
    connection: Connection, pieces: Sequence[tuple[Any, ...]], index: Sequence[tuple[Any, ...]]
) -> None:
    """Inside a transaction."""
    if pieces:
        await connection.execute(_ADD_PIECES, *zip(*pieces, strict=True))
        await connection.execute(_ADD_INDEX, *zip(*index, strict=True))


async def delete_commits_slice(connection: Connection, shard: int, kind: str, id: str, through_seq: int) -> bool:
    """Inside a transaction that holds the shard's row: drop the oldest of an entity's commits up to `through_seq`; True
    when there are more."""
    entity = (shard, kind.encode(), id.encode())
    found = await connection.fetch(f"{_PIECES_OF_ENTITY} LIMIT {DELETE_PIECES_MAX + 1}", *entity, 0)
    pieces = [piece for piece in found if piece["first_seq"] <= through_seq]
    for first_position, first_seq, last_seq, last_position, blob in pieces[:DELETE_PIECES_MAX]:
        piece = piece_commits(shard, first_position, last_position, blob)
        own = own_commits(shard, first_position, piece, kind, id, (first_seq, last_seq))
        left = without(piece, kind, id, through_seq)
        if left:
            await connection.execute(
                "UPDATE history SET last_position = $3, row = $4 WHERE shard = $1 AND first_position = $2",
                shard,
                first_position,
                left[-1].position,
                piece_blob(shard, first_position, left),
            )
        else:
            await connection.execute(
                "DELETE FROM history WHERE shard = $1 AND first_position = $2", shard, first_position
            )
        if kept := [commit for commit in own if commit.seq > through_seq]:
            await connection.execute(_SHORTEN_ENTRY, *entity, last_seq, kept[0].seq)
        else:
            await connection.execute(_DELETE_ENTRY, *entity, last_seq)
    return len(pieces) > DELETE_PIECES_MAX


async def read_few_commits(
    connection: Connection, shard: int, kind: str, id: str, after_seq: int, to_seq: int | None, limit: int | None
) -> list[Commit] | None:
    """In one round trip, as of one instant; None when there may be more than that brings."""
    wanted = _Wanted(shard, kind, id, after_seq, to_seq, limit)
    return None if await _page(connection, wanted) else wanted.found


async def read_commits(
    connection: Connection, shard: int, kind: str, id: str, after_seq: int, to_seq: int | None, limit: int | None
) -> list[Commit]:
    """Inside a snapshot."""
    wanted = _Wanted(shard, kind, id, after_seq, to_seq, limit)
    while await _page(connection, wanted):
        pass
    return wanted.found


async def _page(connection: Connection, wanted: _Wanted) -> bool:
    """True when there may be more."""
    shard, kind, id = wanted.entity
    pieces = await connection.fetch(_PAGE_OF_ENTITY, shard, kind.encode(), id.encode(), wanted.after_seq, READ_PIECES)
    return all(wanted.take(*piece) for piece in pieces) and len(pieces) == READ_PIECES


class _Wanted:
    """Commits of one entity with after_seq < seq <= to_seq, at most `limit`, out of pieces that come in order."""

    def __init__(self, shard: int, kind: str, id: str, after_seq: int, to_seq: int | None, limit: int | None) -> None:
        self.found: list[Commit] = []
        self.entity = shard, kind, id
        self.after_seq = after_seq
        """Of what is still to come."""
        self._to_seq = to_seq
        self._limit = limit

    def take(self, first_position: int, first_seq: int, last_seq: int, last_position: Any, blob: Any) -> bool:
        """One piece; False when nothing of it or of later ones is wanted."""
        shard, kind, id = self.entity
        to_seq, limit = self._to_seq, self._limit
        if (to_seq is not None and first_seq > to_seq) or (limit is not None and len(self.found) >= limit):
            return False
        piece = piece_commits(shard, first_position, last_position, blob)
        own = own_commits(shard, first_position, piece, kind, id, (first_seq, last_seq))
        self.found += [c for c in own if self.after_seq < c.seq and (to_seq is None or c.seq <= to_seq)]
        if limit is not None:
            del self.found[max(limit, 0) :]
        self.after_seq = max(self.after_seq, last_seq)
        return True


async def read_history(connection: Connection, shard: int, after_position: int, limit: int | None) -> list[Commit]:
    """Inside a snapshot."""
    found: list[Commit] = []
    begin = await connection.fetchval(_FIRST_PIECE, shard, after_position)
    while (limit is None or len(found) < limit) and (
        pieces := await connection.fetch(_PIECES_OF_SHARD, shard, begin, READ_PIECES)
    ):
        for first_position, last_position, blob in pieces:
            piece = piece_commits(shard, first_position, last_position, blob)
            found += [commit for commit in piece if commit.position > after_position]
        begin = pieces[-1]["first_position"] + 1
    return found if limit is None else found[: max(limit, 0)]
