"""tables.db: ownership and the tables together, since a checkpoint checks the one while it writes the other.

Every transaction that changes something takes the write lock first and reads the shards' rows under it (rule 7). Blobs
are encoded before the lock is taken: other hosts wait behind it.

Whether a host is LIVE stands in leases.db and is read under the lock of the tables. A condemnation that falls between
that look and the commit counts as coming after it; that harms nobody, since a claim is only a right to seal, and a
condemned host's log is sealed by whoever comes after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from ..actors.errors import CorruptRecord, IncompatibleStore
from . import ownership
from .checksum import wrap
from .records import ClientRow, Commit, EntityRow, NamedReply
from .rows import entity_after, leaves_state
from .spi import Assignment, HostState, ShardRow, TableWrite
from .sqlite_file import Database, create_file, proven
from .sqlite_leases import leases_path
from .sqlite_schema import TABLES

HISTORY_PIECE_BYTES = 256 << 10
"""A piece of packed history ends above this: who wants one entity's commits decodes whole pieces."""

Struct = TypeVar("Struct")
_encode = msgspec.msgpack.Encoder().encode
_shard_decoder = msgspec.msgpack.Decoder(ShardRow)
_entity_decoder = msgspec.msgpack.Decoder(EntityRow)
_client_decoder = msgspec.msgpack.Decoder(ClientRow)
_named_decoder = msgspec.msgpack.Decoder(NamedReply)
_commits_decoder = msgspec.msgpack.Decoder(list[Commit])

_UPSERT_ENTITY = """
INSERT INTO entities (shard, kind, id, seq, row) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET seq = excluded.seq, row = excluded.row WHERE excluded.seq > seq
"""
_UPSERT_CLIENT = """
INSERT INTO clients (shard, client, floor, row) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET floor = excluded.floor, row = excluded.row WHERE excluded.floor >= floor
"""
_INSERT_NAMED = """
INSERT INTO named_replies (shard, kind, id, command_id, time_ms, row) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING
"""


def tables_path(folder: Path) -> Path:
    return folder / "tables.db"


def create_tables(folder: Path, app: str, shards: int) -> bool:
    rows = [(shard, _shard_blob(ownership.unowned(shard))) for shard in range(shards)]

    def fill(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO meta VALUES (1, ?, ?)", (app, shards))
        connection.executemany("INSERT INTO shards VALUES (?, ?)", rows)

    return create_file(tables_path(folder), TABLES, fill)


def check_tables(folder: Path, app: str, shards: int) -> None:
    """Raise `IncompatibleStore` unless these are the tables of `app` with that many shards."""
    database = Database(tables_path(folder))
    try:
        found = database.row("SELECT app, shards FROM meta")
        if found is None:
            raise CorruptRecord(f"{folder}: tables.db does not say whose it is; restore this store from a backup")
        if found[0] != app:
            raise IncompatibleStore(
                f"{folder} holds the app {found[0]!r}, not {app!r}: choose another folder for {app!r}"
            )
        if found[1] != shards:
            raise IncompatibleStore(
                f"{folder} was made with {found[1]} shards, not {shards}, and the count is fixed at creation: "
                f"set shards to {found[1]}, or start {app!r} on a new folder"
            )
    finally:
        database.close()


class TablesWriter:
    """The connection that changes tables.db, for one thread."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(tables_path(folder))
        try:
            self._leases = Database(leases_path(folder))
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._leases.close()
        self._database.close()

    def ping(self) -> None:
        """Nothing: having been made is enough."""

    # ---- ownership -------------------------------------------------------------------------------------------
    def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        changed = set()
        with self._database.transaction():
            live = self._live({assignment.incarnation for assignment in assignments})
            for assignment in assignments:
                row = ownership.assigned(self._shard(assignment.shard), assignment)
                if row is not None and assignment.incarnation in live:
                    self._put_shard(row)
                    changed.add(row.shard)
        return frozenset(changed)

    def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        taken = []
        with self._database.transaction():
            if self._live({incarnation}):
                for shard, epoch in claims:
                    before = self._shard(shard)
                    row = ownership.claimed(before, incarnation, epoch)
                    if row is not None:
                        taken.append(row)
                        if row is not before:
                            self._put_shard(row)
        return taken

    def _live(self, incarnations: Iterable[int]) -> set[int]:
        sql = "SELECT 1 FROM hosts WHERE incarnation = ? AND state = ?"
        return {i for i in incarnations if self._leases.row(sql, (i, HostState.LIVE.value)) is not None}

    def _shard(self, shard: int) -> ShardRow:
        row = self._database.row("SELECT row FROM shards WHERE shard = ?", (shard,))
        if row is None:
            raise CorruptRecord(f"{_shard_place(shard)}: missing; restore this store from a backup")
        return _decoded(_shard_decoder, row[0], _shard_place(shard))

    def _put_shard(self, row: ShardRow) -> None:
        self._database.write("UPDATE shards SET row = ? WHERE shard = ?", (_shard_blob(row), row.shard))

    # ---- checkpoint ------------------------------------------------------------------------------------------
    def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        prepared = [(write, _Rows(write)) for write in writes]
        refused = set()
        with self._database.transaction():
            for write, rows in prepared:
                before = self._shard(write.shard)
                commits = () if write.end is None else ownership.fresh_commits(before, write.end)
                if not ownership.may_write(before, incarnation, write.epoch):
                    refused.add(write.shard)
                    continue
                self._write_rows(write, rows)
                if write.end is not None:
                    self._add_history(write.shard, commits)
                    self._put_shard(ownership.ended(before, incarnation, write.end))
        return frozenset(refused)

    def _write_rows(self, write: TableWrite, rows: _Rows) -> None:
        database = self._database
        database.write_all(_UPSERT_ENTITY, rows.entities)
        for row in rows.without_state:
            stored = stored_entity(database, write.shard, row.kind, row.id)
            if (after := entity_after(stored, row)) is not stored:
                database.write(_UPSERT_ENTITY, _entity_binding(write.shard, after))
        database.write_all(_UPSERT_CLIENT, rows.clients)
        database.write_all(
            "DELETE FROM clients WHERE shard = ? AND client = ?",
            [(write.shard, client) for client in write.forgotten_clients],
        )
        database.write_all(_INSERT_NAMED, rows.named)
        if write.forget_named_before_ms:
            database.write(
                "DELETE FROM named_replies WHERE shard = ? AND time_ms < ?", (write.shard, write.forget_named_before_ms)
            )

    def _add_history(self, shard: int, commits: Sequence[Commit]) -> None:
        for piece in _pieces(commits):
            first, last = piece[0].position, piece[-1].position
            self._database.write(
                "INSERT INTO history VALUES (?, ?, ?, ?)",
                (shard, first, last, wrap(_encode(piece), _history_place(shard, first))),
            )
            seqs: dict[tuple[str, str], tuple[int, int]] = {}
            for commit in piece:
                first_seq, _last_seq = seqs.get((commit.kind, commit.id), (commit.seq, 0))
                seqs[commit.kind, commit.id] = first_seq, commit.seq
            self._database.write_all(
                "INSERT INTO history_by_entity (shard, kind, id, last_seq, first_seq, first_position) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (shard, kind, id, last_seq, first_seq, first)
                    for (kind, id), (first_seq, last_seq) in sorted(seqs.items())
                ],
            )


class TablesReader:
    """A connection that only reads tables.db, for one thread. Its transactions are as short as one answer: a longer
    one would keep the WAL from being folded back."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(tables_path(folder))

    def close(self) -> None:
        self._database.close()

    def shards(self) -> list[ShardRow]:
        return [
            _decoded(_shard_decoder, blob, _shard_place(shard))
            for shard, blob in self._database.rows("SELECT shard, row FROM shards ORDER BY shard")
        ]

    def named_owners(self) -> set[int]:
        """Incarnations that some shard's `owners` names."""
        return {owner for row in self.shards() for owner in row.owners}

    def entity(self, shard: int, kind: str, id: str) -> EntityRow | None:
        return stored_entity(self._database, shard, kind, id)

    def commits(
        self, shard: int, kind: str, id: str, after_seq: int, to_seq: int | None, limit: int | None
    ) -> list[Commit]:
        found: list[Commit] = []
        with self._database.snapshot():
            pieces = self._database.rows(
                "SELECT first_position, first_seq, last_seq FROM history_by_entity "
                "WHERE shard = ? AND kind = ? AND id = ? AND last_seq > ? ORDER BY last_seq",
                (shard, kind, id, after_seq),
            )
            for first_position, first_seq, last_seq in pieces:
                if (to_seq is not None and first_seq > to_seq) or (limit is not None and len(found) >= limit):
                    break
                own = [c for c in self._piece(shard, first_position) if (c.kind, c.id) == (kind, id)]
                seqs = (own[0].seq, own[-1].seq) if own else (0, 0)
                _same(_history_place(shard, first_position), seqs, (first_seq, last_seq))
                found += [c for c in own if after_seq < c.seq and (to_seq is None or c.seq <= to_seq)]
        return found if limit is None else found[: max(limit, 0)]

    def history(self, shard: int, after_position: int, limit: int | None) -> list[Commit]:
        found: list[Commit] = []
        with self._database.snapshot():
            # Pieces do not overlap: the first one that can matter is the last that begins at or before the position.
            row = self._database.row(
                "SELECT max(first_position) FROM history WHERE shard = ? AND first_position <= ?",
                (shard, after_position),
            )
            first = (row[0] if row else None) or 0
            while limit is None or len(found) < limit:
                row = self._database.row(
                    "SELECT first_position FROM history WHERE shard = ? AND first_position >= ? "
                    "ORDER BY first_position LIMIT 1",
                    (shard, first),
                )
                if row is None:
                    break
                found += [commit for commit in self._piece(shard, row[0]) if commit.position > after_position]
                first = row[0] + 1
        return found if limit is None else found[: max(limit, 0)]

    def _piece(self, shard: int, first_position: int) -> list[Commit]:
        place = _history_place(shard, first_position)
        row = self._database.row(
            "SELECT last_position, row FROM history WHERE shard = ? AND first_position = ?", (shard, first_position)
        )
        if row is None:
            raise CorruptRecord(f"{place}: missing though the index names it; restore this store from a backup")
        piece = _decoded(_commits_decoder, row[1], place)
        _same(place, (piece[0].position, piece[-1].position) if piece else None, (first_position, row[0]))
        return piece

    def clients(self, shard: int) -> list[ClientRow]:
        found = []
        for client, floor, blob in self._database.rows(
            "SELECT client, floor, row FROM clients WHERE shard = ? ORDER BY client", (shard,)
        ):
            place = _client_place(shard, client)
            row = _decoded(_client_decoder, blob, place)
            _same(place, (row.client, row.floor), (client, floor))
            found.append(row)
        return found

    def named(self, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
        row = self._database.row(
            "SELECT time_ms, row FROM named_replies WHERE shard = ? AND kind = ? AND id = ? AND command_id = ?",
            (shard, kind, id, command_id),
        )
        if row is None:
            return None
        place = _named_place(shard, kind, id, command_id)
        named = _decoded(_named_decoder, row[1], place)
        _same(place, (named.kind, named.id, named.command_id, named.time_ms), (kind, id, command_id, row[0]))
        return named


def stored_entity(database: Database, shard: int, kind: str, id: str) -> EntityRow | None:
    row = database.row("SELECT seq, row FROM entities WHERE shard = ? AND kind = ? AND id = ?", (shard, kind, id))
    if row is None:
        return None
    place = _entity_place(shard, kind, id)
    entity = _decoded(_entity_decoder, row[1], place)
    _same(place, (entity.kind, entity.id, entity.seq), (kind, id, row[0]))
    return entity


def _entity_binding(shard: int, row: EntityRow) -> tuple[int, str, str, int, bytes]:
    return shard, row.kind, row.id, row.seq, wrap(_encode(row), _entity_place(shard, row.kind, row.id))


class _Rows:
    """A table write as rows to bind."""

    def __init__(self, write: TableWrite) -> None:
        shard = write.shard
        self.entities = [_entity_binding(shard, row) for row in write.entities if not leaves_state(row)]
        self.without_state = [row for row in write.entities if leaves_state(row)]
        self.clients = [
            (shard, c.client, c.floor, wrap(_encode(c), _client_place(shard, c.client))) for c in write.clients
        ]
        self.named = [
            (
                shard,
                r.kind,
                r.id,
                r.command_id,
                r.time_ms,
                wrap(_encode(r), _named_place(shard, r.kind, r.id, r.command_id)),
            )
            for r in write.named
        ]


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


def _shard_blob(row: ShardRow) -> bytes:
    return wrap(_encode(row), _shard_place(row.shard))


def _decoded(decoder: msgspec.msgpack.Decoder[Struct], blob: object, place: str) -> Struct:
    try:
        return decoder.decode(proven(blob, place))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptRecord(f"{place}: {error}; restore this store from a backup") from None


def _same(place: str, content: Any, columns: Any) -> None:
    if content != columns:
        raise CorruptRecord(f"{place}: holds {content!r} under {columns!r}; restore this store from a backup")


def _shard_place(shard: int) -> str:
    return f"shard {shard}"


def _entity_place(shard: int, kind: str, id: str) -> str:
    return f"entity {kind}/{id!r} of shard {shard}"


def _client_place(shard: int, client: int) -> str:
    return f"client {client} of shard {shard}"


def _named_place(shard: int, kind: str, id: str, command_id: str) -> str:
    return f"reply {command_id!r} of {kind}/{id!r} in shard {shard}"


def _history_place(shard: int, first_position: int) -> str:
    return f"history of shard {shard} from position {first_position}"
