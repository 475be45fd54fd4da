"""What is damaged in the rows of a store, said one line each. Pure: the stores hand in what stands there.

Every row has to prove itself at its place. History has an index beside it: both are turned into the same entries, whose
sum has to agree, so that neither is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from ..actors.errors import CorruptRecord
from .history_pieces import index_of, piece_commits
from .table_shapes import SHAPES
from .tables import Table

PROBLEMS_MAX = 20
"""Of one table of a shard; what is told beyond that helps nobody."""


class Problems:
    """Collects lines, up to a bound."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        if len(self.lines) < PROBLEMS_MAX:
            self.lines.append(line)
        elif len(self.lines) == PROBLEMS_MAX:
            self.lines.append("... and more of that kind")

    def hear(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, None when it finds damage."""
        try:
            return work()
        except CorruptRecord as error:
            self.add(str(error))
            return None


def check_rows(problems: Problems, table: Table, shard: int, rows: Iterable[Sequence[Any]]) -> None:
    """Rows as `SHAPES` has them: key columns, then the others."""
    for row in rows:
        problems.hear(lambda row=row: SHAPES[table].read(shard, *row))  # type: ignore[misc]  # a default binds it now


class HistoryCheck:
    """The history of one shard against its index, in any order."""

    def __init__(self, shard: int, problems: Problems) -> None:
        self._shard = shard
        self._problems = problems
        self._last_position = 0
        self._entries = 0
        self._sum = 0

    def piece(self, first_position: int, last_position: Any, blob: Any) -> None:
        """In order of position."""
        commits = self._problems.hear(lambda: piece_commits(self._shard, first_position, last_position, blob))
        for commit in commits or ():
            if commit.position <= self._last_position:
                self._problems.add(
                    f"history of shard {self._shard}: position {commit.position} follows {self._last_position}"
                )
            self._last_position = commit.position
        for entry in index_of(commits or ()):
            self._count((*entry, first_position), 1)

    def index(self, kind: str, id: str, last_seq: int, first_seq: int, first_position: int) -> None:
        self._count((kind, id, last_seq, first_seq, first_position), -1)

    def _count(self, entry: tuple[Any, ...], sign: int) -> None:
        self._entries += sign
        self._sum += sign * xxh3_64_intdigest(repr(entry).encode())

    def end(self) -> None:
        if self._entries or self._sum:
            self._problems.add(
                f"history of shard {self._shard}: its index does not name what its pieces hold "
                f"({self._entries:+} entries in pieces); restore this store from a backup"
            )
