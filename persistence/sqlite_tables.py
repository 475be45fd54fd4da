"""tables.db: ownership and the tables together, since a checkpoint checks the one while it writes the other.

Every transaction that changes something takes the write lock first and reads the shards' rows under it (rule 7). Blobs
are encoded before the lock is taken: other hosts wait behind it.

Whether a host is LIVE and eligible stands in leases.db and is read under the lock of the tables. A condemnation that
falls between that look and the commit counts as coming after it; that harms nobody, since a claim is only a right to
seal, and a condemned host's log is sealed by whoever comes after. A drain that begins there comes after it, too: what
the host was just given is moved away with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import apsw

from ..actors.errors import CorruptRecord, IncompatibleStore
from . import ownership
from .records import ClientRow, EntityRow, NamedReply
from .rows import covered_seq, entity_after, leaves_state
from .spi import Assignment, HostRow, HostState, ShardRow, TableWrite, check_loading
from .sqlite_file import SCHEMA_VERSION, Database, create_file
from .sqlite_history import add_history, delete_commits_slice
from .sqlite_leases import leases_path, read_host
from .sqlite_pending import PendingRows
from .sqlite_schema import VERSIONS
from .stripes import ONLY, Stripe, check_stripe
from .table_rows import (
    client_blob,
    client_row,
    entity_blob,
    entity_row,
    named_blob,
    named_row,
    shard_blob,
    shard_place,
    shard_row,
)

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


STRIPES_SINCE = 4
"""The schema version whose meta names the stripe."""


def create_tables(folder: Path, app: str, shards: int, stripe: Stripe = ONLY) -> bool:
    rows = [(shard, shard_blob(ownership.unowned(shard))) for shard in stripe.shards(shards)]

    def fill(connection: apsw.Connection) -> None:
        meta = (app, shards, stripe.index, stripe.count, stripe.family)
        connection.execute("INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?)", meta)
        connection.executemany("INSERT INTO shards VALUES (?, ?)", rows)

    return create_file(tables_path(folder), "".join(VERSIONS.values()), fill)


def check_tables(folder: Path, app: str, shards: int, stripe: Stripe = ONLY) -> None:
    """Raise `IncompatibleStore` unless these are the tables of that stripe of `app` with that many shards."""
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
        check_stripe(_stripe(database), stripe, str(folder))
    finally:
        database.close()


def migrate_tables(folder: Path) -> None:
    """Bring the tables of an older schema up to date, in one transaction. They were checked before."""
    database = Database(tables_path(folder))
    try:
        if _version(database) < SCHEMA_VERSION:
            with database.transaction():
                # Looked at again under the lock: another process may have been first.
                for version in range(_version(database) + 1, SCHEMA_VERSION + 1):
                    database.write(VERSIONS[version])
                database.write(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        database.close()


def _version(database: Database) -> int:
    ((version,),) = database.rows("PRAGMA user_version")
    assert isinstance(version, int)
    return version


def _stripe(database: Database) -> Stripe:
    if _version(database) < STRIPES_SINCE:
        return ONLY
    ((index, count, family),) = database.rows("SELECT stripe, stripes, family FROM meta")
    return Stripe(index, count, family)


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

    def stripe(self) -> Stripe:
        """As which the store was made."""
        return _stripe(self._database)

    # ---- ownership -------------------------------------------------------------------------------------------
    def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        return self._decide(ownership.assigned, assignments)

    def move(self, moves: Sequence[Assignment]) -> frozenset[int]:
        return self._decide(ownership.moved, moves)

    def _decide(self, step: ownership.Step, decisions: Sequence[Assignment]) -> frozenset[int]:
        with self._database.transaction():
            eligible = self._eligible(decision.incarnation for decision in decisions)
            changed = ownership.decided(step, self._shard, decisions, eligible)
            for row in changed.values():
                self._put_shard(row)
        return frozenset(changed)

    def pin(self, shard: int, node: str | None) -> bool:
        with self._database.transaction():
            row = ownership.pinned(self._shard(shard), node)
            if row is not None:
                self._put_shard(row)
        return row is not None

    def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        taken = []
        with self._database.transaction():
            host = self._host(incarnation)
            if host is not None and host.state is HostState.LIVE:
                for shard, epoch in claims:
                    before = self._shard(shard)
                    row = ownership.claimed(before, incarnation, epoch)
                    if row is not None:
                        taken.append(row)
                        if row is not before:
                            self._put_shard(row)
        return taken

    def _eligible(self, incarnations: Iterable[int]) -> set[int]:
        return {i for i in set(incarnations) if ownership.eligible(self._host(i))}

    def _host(self, incarnation: int) -> HostRow | None:
        return read_host(self._leases, incarnation)

    def _shard(self, shard: int) -> ShardRow:
        row = self._database.row("SELECT row FROM shards WHERE shard = ?", (shard,))
        if row is None:
            raise CorruptRecord(f"{shard_place(shard)}: missing; restore this store from a backup")
        return shard_row(shard, row[0])

    def _put_shard(self, row: ShardRow) -> None:
        self._database.write("UPDATE shards SET row = ? WHERE shard = ?", (shard_blob(row), row.shard))

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
                    add_history(self._database, write.shard, commits)
                    heir = before.target if write.end.release else None  # only a release must look into leases.db
                    eligible = heir is not None and ownership.eligible(self._host(heir))
                    self._put_shard(ownership.ended(before, incarnation, write.end, target_eligible=eligible))
        return frozenset(refused)

    def _write_rows(self, write: TableWrite, rows: _Rows) -> None:
        database = self._database
        database.write_all(_UPSERT_ENTITY, rows.entities)
        for row in rows.without_state:
            stored = read_entity(database, write.shard, row.kind, row.id)
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
        database.write_all(
            "DELETE FROM named_replies WHERE shard = ? AND kind = ? AND id = ? AND command_id = ?",
            [(write.shard, *name) for name in write.named_gone],
        )
        rows.pending.write(database)

    # ---- import ----------------------------------------------------------------------------------------------
    def load(self, writes: Sequence[TableWrite]) -> None:
        prepared = [(write, _Rows(write)) for write in writes]
        with self._database.transaction():
            check_loading(self._app())
            for write, rows in prepared:
                self._write_rows(write, rows)
                if write.end is not None:
                    before = self._shard(write.shard)
                    add_history(self._database, write.shard, ownership.fresh_commits(before, write.end))
                    self._put_shard(ownership.loaded(before, write.epoch, write.end))

    def loads(self, app: str) -> bool:
        """False when it is the store of `app` already. Raises `ValueError` when it is another one's."""
        if (found := self._app()) == app:
            return False
        check_loading(found)
        return True

    def finish_load(self, app: str) -> None:
        self._database.write("UPDATE meta SET app = ?", (app,))

    def _app(self) -> str:
        ((app,),) = self._database.rows("SELECT app FROM meta")
        return str(app)

    def delete_history_slice(self, shard: int, kind: str, id: str, through_seq: int) -> bool:
        """Some of what `Store.delete_history` drops, the oldest first; True when there is more."""
        with self._database.transaction():
            through_seq = min(through_seq, covered_seq(read_entity(self._database, shard, kind, id)))
            return delete_commits_slice(self._database, shard, kind, id, through_seq)


# ---- reading: in transactions as short as one answer, since a longer one would keep the WAL from being folded back


def read_shards(database: Database) -> list[ShardRow]:
    return [shard_row(shard, blob) for shard, blob in database.rows("SELECT shard, row FROM shards ORDER BY shard")]


def named_owners(database: Database) -> set[int]:
    """Incarnations that some shard's `owners` names."""
    return {owner for row in read_shards(database) for owner in row.owners}


def read_clients(database: Database, shard: int) -> list[ClientRow]:
    rows = database.rows("SELECT client, floor, row FROM clients WHERE shard = ? ORDER BY client", (shard,))
    return [client_row(shard, *row) for row in rows]


def read_named(database: Database, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
    row = database.row(
        "SELECT time_ms, row FROM named_replies WHERE shard = ? AND kind = ? AND id = ? AND command_id = ?",
        (shard, kind, id, command_id),
    )
    return None if row is None else named_row(shard, kind, id, command_id, *row)


def read_entity(database: Database, shard: int, kind: str, id: str) -> EntityRow | None:
    row = database.row("SELECT seq, row FROM entities WHERE shard = ? AND kind = ? AND id = ?", (shard, kind, id))
    return None if row is None else entity_row(shard, kind, id, *row)


def _entity_binding(shard: int, row: EntityRow) -> tuple[int, str, str, int, bytes]:
    return shard, row.kind, row.id, row.seq, entity_blob(shard, row)


class _Rows:
    """A table write as rows to bind."""

    def __init__(self, write: TableWrite) -> None:
        shard = write.shard
        self.entities = [_entity_binding(shard, row) for row in write.entities if not leaves_state(row)]
        self.without_state = [row for row in write.entities if leaves_state(row)]
        self.clients = [(shard, c.client, c.floor, client_blob(shard, c)) for c in write.clients]
        self.named = [(shard, r.kind, r.id, r.command_id, r.time_ms, named_blob(shard, r)) for r in write.named]
        self.pending = PendingRows(write)
