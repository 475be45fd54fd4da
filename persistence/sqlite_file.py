"""One SQLite file: how it comes into being, how it is opened, how its errors are told.

A file appears complete or not at all: it is made under another name, made durable, and then linked to its own name. A
process killed in between leaves a stray file and no damage; of two that create it at once, one wins and both go on.

A connection belongs to one thread. It waits for locks in short slices: when one is up, it looks whether the lock is
held by a stopped process (rule 18), ends that, and tries again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw

from ..actors.errors import CorruptRecord, IncompatibleStore, StoreError, StoreUnavailable
from .process import end_stopped_lock_holder, wal_lock_holders

APPLICATION_ID = 0x41746F6C
"""`Atol`, in the header of every file: what `file` and we know them by."""
SCHEMA_VERSION = 4
"""In the header of every file (`user_version`). A version that cannot read a file refuses it."""
SCHEMA_OLDEST = 1
"""Files of this version are opened too: logs and leases.db are as they were, tables.db is migrated first."""
LIBRARY_OLDEST = 3_051_003
"""Before 3.51.3 two connections that wrote and checkpointed could corrupt a database in WAL mode."""
CHECKPOINT_PAGES = 4000
"""WAL pages after which a commit also checkpoints: at 1,000 one commit in a few hundred took ten milliseconds."""
WAL_BYTES_KEPT = 64 << 20
"""A WAL that one huge transaction blew up shrinks to this."""
LOCK_SLICE_MS = 250
"""How long SQLite itself waits for a lock before we look who holds it."""
LOCK_WAIT_S = 5.0
"""After this a lock that a running process holds is reported as `StoreUnavailable`."""

Result = TypeVar("Result")
Row = tuple[Any, ...]


def check_library(version: str = apsw.sqlite_lib_version()) -> None:
    """Refuse an SQLite library that is known to corrupt what we do with it."""
    major, minor, patch, *_rest = (*(int(part) for part in version.split(".")), 0, 0)
    if major * 1_000_000 + minor * 1_000 + patch < LIBRARY_OLDEST:
        raise IncompatibleStore(
            f"SQLite {version} can corrupt a database with several connections: pip install -U apsw (3.51.3 or later)"
        )


class Database:
    """A connection to an existing file. Not for more than one thread."""

    def __init__(self, path: Path, *, synchronous: str = "FULL", lock_wait_s: float | None = None) -> None:
        self.path = path
        self._lock_wait_s = LOCK_WAIT_S if lock_wait_s is None else lock_wait_s
        with self._explained():
            self.connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            self.patiently(lambda: self._prepare(synchronous))
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, synchronous: str) -> None:
        self.connection.set_busy_timeout(LOCK_SLICE_MS)
        self.connection.pragma("synchronous", synchronous)
        self.connection.pragma("mmap_size", 0)  # a mapped page hides I/O errors behind signals
        self.connection.pragma("cell_size_check", True)  # find a corrupt page before it is believed
        self.connection.pragma("journal_size_limit", WAL_BYTES_KEPT)
        self.connection.wal_autocheckpoint(CHECKPOINT_PAGES)
        application_id, version = self.connection.pragma("application_id"), self.connection.pragma("user_version")
        if application_id != APPLICATION_ID or not SCHEMA_OLDEST <= version <= SCHEMA_VERSION:
            raise IncompatibleStore(_why_not_ours(self.path, application_id, version))

    def close(self) -> None:
        with self._explained():
            self.connection.close()

    # ---- running SQL -----------------------------------------------------------------------------------------
    def rows(self, sql: str, bindings: Sequence[Any] = ()) -> list[Row]:
        """All rows of one statement."""
        return self.patiently(lambda: self.connection.execute(sql, bindings).fetchall())

    def row(self, sql: str, bindings: Sequence[Any] = ()) -> Row | None:
        """The first row of one statement, None when there is none."""
        found = self.rows(sql, bindings)
        return found[0] if found else None

    def write(self, sql: str, bindings: Sequence[Any] = ()) -> int:
        """One statement as a transaction of its own, or as part of the open one; how many rows it changed."""
        self.patiently(lambda: self.connection.execute(sql, bindings))
        return self.connection.changes()

    def write_all(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """One statement for each of many rows, inside a transaction."""
        with self._explained():
            self.connection.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Commits at the end, rolls back on an exception. It takes the write lock at its start, so that nothing read
        inside it can be outdated when it writes."""
        self.patiently(lambda: self.connection.execute(begin))
        try:
            yield
            with self._explained():
                self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                with self._explained():
                    self.connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several reads as of one instant."""
        with self.transaction("BEGIN DEFERRED"):
            yield

    def patiently(self, work: Callable[[], Result]) -> Result:
        """Run `work`, again and again while the file is locked, ending a stopped process that keeps the lock."""
        give_up_at = time.monotonic() + self._lock_wait_s
        while True:
            try:
                with self._explained():
                    return work()
            except _Locked:
                if self.connection.in_transaction:
                    raise  # inside a transaction the locks are ours already; this one must start again as a whole
                if end_stopped_lock_holder(self.path) is None:
                    if time.monotonic() >= give_up_at:
                        raise
                    time.sleep(0.001)  # some locks are refused without waiting: do not spin on them

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise store_error(error, self.path) from error
        except UnicodeDecodeError as error:
            raise _damaged(self.path, str(error)) from error


class _Locked(StoreUnavailable):
    """Another process holds the lock."""


def store_error(error: apsw.Error, path: Path) -> Exception:
    """What an SQLite error means for the caller."""
    name = f"{path.parent.name}/{path.name}"
    story = f"{name}: {error}"
    match error:
        case apsw.BusyError() | apsw.LockedError():
            holders = ", ".join(map(str, wal_lock_holders(path))) or "unknown"
            return _Locked(f"{story} (held by process {holders}): repeat the same call; if it stays, end that process")
        case apsw.CorruptError() | apsw.NotADBError() | apsw.FormatError():
            return _damaged(path, str(error))
        case apsw.SQLError():  # our SQL fits the schema, so the schema is not what it was
            return _damaged(path, str(error))
        case apsw.FullError():
            return StoreUnavailable(f"{story}: make room on that disk; the same call is repeated until it succeeds")
        case apsw.CantOpenError() if not path.exists():
            return CorruptRecord(
                f"{name} is missing: restore the whole store from a backup, or find out who removed it"
            )
        case apsw.TooBigError():
            return ValueError(f"{story}: over SQLite's own limit for one row")
        case (
            apsw.IOError()
            | apsw.CantOpenError()
            | apsw.ReadOnlyError()
            | apsw.NoMemError()
            | apsw.InterruptError()
            | apsw.ProtocolError()
            | apsw.PermissionsError()
            | apsw.SchemaChangeError()
        ):
            return StoreUnavailable(f"{story}: the outcome is unknown, repeat the same call")
        case _:
            return error  # a mistake of ours: let it be seen as what it is


def _damaged(path: Path, story: str) -> CorruptRecord:
    name = f"{path.parent.name}/{path.name}"
    return CorruptRecord(f"{name}: {story}: this file is damaged; stop the app and restore the store from a backup")


def check_file(database: Database) -> list[str]:
    """What SQLite itself finds in the file, pages, indexes and constraints: the first few."""
    try:
        lines = [str(line) for (line,) in database.rows("PRAGMA integrity_check(20)")]
    except CorruptRecord as error:  # too damaged to be looked over
        return [str(error)]
    return [] if lines == ["ok"] else [f"{database.path.name}: {line}" for line in lines]


def create_file(path: Path, schema: str, fill: Callable[[apsw.Connection], None]) -> bool:
    """Make `path` with `schema` and what `fill` writes, durable and complete. False when someone else was first."""
    if path.exists():
        return False
    draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            connection = apsw.Connection(str(draft))
            try:
                # Before the first page is written, or never.
                connection.pragma("auto_vacuum", 2)
                connection.pragma("application_id", APPLICATION_ID)
                connection.pragma("user_version", SCHEMA_VERSION)
                connection.pragma("journal_mode", "wal")
                connection.pragma("synchronous", "FULL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(schema)
                fill(connection)
                connection.execute("COMMIT")
            finally:
                connection.close()  # the last connection folds the WAL into the file, synced
            os.link(draft, path)
        except FileExistsError:
            return False
        except apsw.Error as error:
            raise store_error(error, path) from error
        except OSError as error:
            raise _cannot_create(path, error) from error
        sync_folder(path.parent)
        return True
    finally:
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_create(path: Path, error: OSError) -> StoreError:
    if error.errno in {1, 95}:  # EPERM, EOPNOTSUPP: no hard links there
        return IncompatibleStore(
            f"{path}: {error.strerror}: this file system has no hard links; put the store on a local disk (ext4, xfs)"
        )
    return StoreUnavailable(f"{path}: {error.strerror}: the store could not be made there")


def _why_not_ours(path: Path, application_id: int, version: int) -> str:
    if application_id != APPLICATION_ID:
        return f"{path} is not a file of Atoll: choose another folder for the store"
    if version > SCHEMA_VERSION:
        return f"{path} has schema version {version}, this version of atoll reads {SCHEMA_VERSION}: upgrade atoll"
    return (
        f"{path} has schema version {version}, which was never released; this version of atoll reads {SCHEMA_VERSION}: "
        "choose another folder for the store"
    )
