"""A copy of an SQLite store, hosts running on it or not, as of one instant.

    lock     tables.db, leases.db, and the log of every host that is not sealed or owned something       milliseconds
    pin      a read transaction on each: what it sees stays as it is now, however long it takes
    unlock   appends, renewals and checkpoints go on
    copy     page by page, out of the pinned transactions
    settle   the copy's hosts are condemned, and their processes are nobody's that could be ended

It has to be one instant for all of them. Tables that are older than the logs lack what a checkpoint moved out of the
logs in between; younger ones hold effects without the replies and messages that belong to them. And of two logs copied
one after the other, the second may hold a message as delivered that the first has not sent: after a restore its number
would be given out again, and the next message under it be dropped as a copy.

While every one of these files is write-locked nobody commits anything, so what is pinned then is what a power cut at
that moment would have left. A sealed log that nobody names can only shrink; it is copied without a lock.

The copy belongs to no machine yet, and has no token file. Beside its original it may be started: it must never end the
original's processes, so it does not know them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
from msgspec.structs import replace

from ..actors.errors import IncompatibleStore, StoreUnavailable
from .host_rows import about_blob, host_row
from .spi import HostState
from .sqlite_file import Database, store_error, sync_folder
from .sqlite_leases import leases_path
from .sqlite_log import log_path
from .sqlite_tables import named_owners, tables_path

STEP_PAGES = 2048
"""Copied at a time: 8 MiB."""
LOCK_WAIT_S = 1.0
"""For each file, while those before it are locked: a transaction of a host takes milliseconds."""

Tell = Callable[[int, int], None]


class Backup:
    """Makes copies of one folder, on a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        """Nothing stays open between two copies."""

    def copy(self, to: Path, tell: Tell) -> None:
        """Copy the store to the new folder `to`, which appears when it is complete. `tell`: (pages done, of how
        many)."""
        if to.exists():
            raise IncompatibleStore(f"{to} exists: name a folder that is not there yet")
        draft = to.with_name(f".{to.name}.part-{os.getpid()}")
        try:
            (draft / "logs").mkdir(parents=True, mode=0o700)
            self._copy_all(draft, tell)
            _condemn_all(draft)
            for folder in (draft / "logs", draft):
                sync_folder(folder)
            draft.rename(to)
            sync_folder(to.parent)
        except OSError as error:
            raise StoreUnavailable(f"{to}: {error.strerror}: the copy could not be made there") from error
        finally:
            _remove(draft)

    def _copy_all(self, draft: Path, tell: Tell) -> None:
        with contextlib.ExitStack() as stack:
            pinned = self._pinned(stack)
            total = sum(_pages(database) for database in pinned)
            done = 0
            for database in pinned:
                for pages in _copied(database, draft / database.path.relative_to(self._folder)):
                    done += pages
                    tell(done, total)
            rest = self._finished(draft)
        for path in rest:
            with contextlib.closing(Database(path)) as database:
                for _pages_copied in _copied(database, draft / path.relative_to(self._folder)):
                    pass

    def _pinned(self, stack: contextlib.ExitStack) -> list[Database]:
        """Every file that can change, in a read transaction as of one instant."""
        with contextlib.ExitStack() as locks:
            tables = self._locked(locks, tables_path(self._folder))
            leases = self._locked(locks, leases_path(self._folder))
            alive = {row[0] for row in leases.rows("SELECT incarnation FROM hosts WHERE state <> 'sealed'")}
            paths = [log_path(self._folder, incarnation) for incarnation in sorted(alive | named_owners(tables))]
            for path in paths:
                self._locked(locks, path)
            found = []
            for path in (tables.path, leases.path, *paths):
                database = stack.enter_context(contextlib.closing(Database(path)))
                stack.enter_context(database.snapshot())
                database.rows("SELECT 1 FROM sqlite_schema")  # a transaction begins with its first read
                found.append(database)
        return found

    def _locked(self, locks: contextlib.ExitStack, path: Path) -> Database:
        database = locks.enter_context(contextlib.closing(Database(path, lock_wait_s=LOCK_WAIT_S)))
        locks.enter_context(database.transaction())
        return database

    def _finished(self, draft: Path) -> list[Path]:
        """Logs that the copy's hosts table knows and that were not pinned: sealed, and nobody names them."""
        with contextlib.closing(Database(leases_path(draft))) as leases:
            known = [row[0] for row in leases.rows("SELECT incarnation FROM hosts ORDER BY incarnation")]
        return [
            log_path(self._folder, incarnation) for incarnation in known if not log_path(draft, incarnation).exists()
        ]


def _pages(database: Database) -> int:
    ((pages,),) = database.rows("PRAGMA page_count")
    return int(pages)


def _copied(database: Database, to: Path) -> Iterator[int]:
    """Copy the file as its connection sees it, durably; how many pages each step took."""
    try:
        with (
            contextlib.closing(apsw.Connection(str(to))) as copy,
            copy.backup("main", database.connection, "main") as work,
        ):
            left = _pages(database)
            while not work.done:
                work.step(STEP_PAGES)
                yield left - work.remaining
                left = work.remaining
    except apsw.Error as error:
        raise store_error(error, to) from error


def _condemn_all(draft: Path) -> None:
    with contextlib.closing(Database(leases_path(draft))) as leases, leases.transaction():
        for incarnation, state, renewals, about in leases.rows("SELECT * FROM hosts"):
            row = replace(host_row(incarnation, state, renewals, about), process=None)
            after = HostState.GONE if row.state is HostState.LIVE else row.state
            leases.write(
                "UPDATE hosts SET state = ?, about = ? WHERE incarnation = ?",
                (after.value, about_blob(row), incarnation),
            )


def _remove(draft: Path) -> None:
    """What is left of a copy that was not finished."""
    for folder in (draft / "logs", draft):
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
