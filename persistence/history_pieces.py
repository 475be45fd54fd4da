"""History as the stores keep it: the commits of a checkpoint packed in pieces, and an index that says which hold an
entity's. Pure.

A piece is named by the position where it began when it was written. Pieces of a shard do not overlap. Deleting an
entity's commits takes them out of the pieces that they share with others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..actors.errors import CorruptRecord
from .records import Commit
from .row_codec import check_same, decoded, encoded

HISTORY_PIECE_BYTES = 256 << 10
"""A piece of packed history ends above this: who wants one entity's commits decodes whole pieces."""
DELETE_PIECES_MAX = 8
"""Pieces rewritten in one transaction: up to 2 MiB, so that other hosts do not wait long behind it."""

_decoder = msgspec.msgpack.Decoder(list[Commit])


def pieces_of(commits: Sequence[Commit]) -> Iterable[list[Commit]]:
    """Cut commits, in order of position, into runs of about `HISTORY_PIECE_BYTES` of events."""
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


def index_of(piece: Iterable[Commit]) -> list[tuple[str, str, int, int]]:
    """(kind, ID, last seq, first seq) of each entity that has commits in the piece, in order."""
    seqs: dict[tuple[str, str], tuple[int, int]] = {}
    for commit in piece:
        first_seq, _last_seq = seqs.get((commit.kind, commit.id), (commit.seq, 0))
        seqs[commit.kind, commit.id] = first_seq, commit.seq
    return [(*key, last_seq, first_seq) for key, (first_seq, last_seq) in sorted(seqs.items())]


def piece_blob(shard: int, first_position: int, commits: Sequence[Commit]) -> bytes:
    return encoded(commits, _place(shard, first_position))


def piece_commits(shard: int, first_position: int, last_position: Any, blob: Any) -> list[Commit]:
    """The commits of a piece. Raises `CorruptRecord` when the piece is not what its row says, or (both None) missing
    though the index names it."""
    place = _place(shard, first_position)
    if blob is None:
        raise CorruptRecord(f"{place}: missing though the index names it; restore this store from a backup")
    piece = decoded(_decoder, blob, place)
    check_same(place, piece[-1].position if piece else None, last_position)
    return piece


def own_commits(
    shard: int, first_position: int, piece: Iterable[Commit], kind: str, id: str, seqs: tuple[int, int]
) -> list[Commit]:
    """Those of one entity. Raises `CorruptRecord` unless they are from and to what the index says (`seqs`)."""
    own = [commit for commit in piece if (commit.kind, commit.id) == (kind, id)]
    check_same(_place(shard, first_position), (own[0].seq, own[-1].seq) if own else None, seqs)
    return own


def without(piece: Iterable[Commit], kind: str, id: str, through_seq: int) -> list[Commit]:
    """What is left of a piece when an entity's commits up to `through_seq` are dropped."""
    return [c for c in piece if (c.kind, c.id) != (kind, id) or c.seq > through_seq]


def _place(shard: int, first_position: int) -> str:
    return f"history of shard {shard} from position {first_position}"
