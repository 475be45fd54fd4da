"""One incarnation's log: a file with one table, whose key is fence, idempotence and order at once.

What its rows are stands in log_marks.py. An append is one INSERT that succeeds only at newest + 1 and only above a row
that is not a seal. So a writer can neither overwrite nor leave a gap nor step over the seal, and needs no read of its
own before it writes.

The file is made before its host is registered and never again: opening never creates, so a zombie cannot find a fresh
log.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from ..actors.errors import CorruptRecord
from .log_marks import batches, birth_blob, check_birth, check_refused, check_seal, no_birth, seal_blob
from .process import end_process
from .spi import LogRow, ProcessIdentity
from .sqlite_file import Database, check_file, create_file, store_error

DELETE_ROWS_MAX = 1000
"""Rows and bytes dropped in one transaction, so that an append waits behind one slice and not behind all of them."""
DELETE_BYTES_MAX = 4 << 20
OTHER_LOGS_OPEN_MAX = 8
"""Each costs three descriptors."""

_SCHEMA = """
CREATE TABLE log (
    n       INTEGER PRIMARY KEY,
    seal    INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT
"""
# `seal` is NULL, and so refused, unless the newest row stands at n - 1 and is no seal.
_APPEND = """
INSERT INTO log (n, seal, content)
VALUES (?1, (SELECT CASE WHEN n = ?1 - 1 AND seal = 0 THEN 0 END FROM log ORDER BY n DESC LIMIT 1), ?2)
"""


def log_path(folder: Path, incarnation: int) -> Path:
    return folder / "logs" / f"{incarnation}.db"


def create_log(folder: Path, app: str, incarnation: int) -> None:
    """Make the log of a new incarnation, empty and durable. Its number was reserved for this call alone."""
    birth = birth_blob(app, incarnation)

    def fill(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO log VALUES (0, 0, ?)", (birth,))

    if not create_file(log_path(folder, incarnation), _SCHEMA, fill):
        raise CorruptRecord(
            f"logs/{incarnation}.db is there although incarnation {incarnation} was never registered: "
            "leases.db is older than the logs; restore the whole store from one backup"
        )


class LogFile:
    """A connection to a log, for one thread."""

    def __init__(self, folder: Path, app: str, incarnation: int) -> None:
        self.incarnation = incarnation
        self.database = Database(log_path(folder, incarnation))
        self._connection = self.database.connection
        try:
            self._check_birth(app)
        except BaseException:
            self.database.close()
            raise

    def _check_birth(self, app: str) -> None:
        row = self.database.row("SELECT content FROM log WHERE n = 0")
        if row is None:
            raise no_birth(self.incarnation)
        check_birth(app, self.incarnation, row[0])

    def close(self) -> None:
        self.database.close()

    def append(self, n: int, content: bytes) -> None:
        """See `Store.append`."""
        try:
            self._connection.execute(_APPEND, (n, content))
        except apsw.ConstraintError:
            self._explain_refusal(n, content)
        except apsw.BusyError:  # somebody seals this log, or opens it after a crash: wait for the outcome
            self._append_patiently(n, content)
        except apsw.Error as error:
            raise store_error(error, self.database.path) from error

    def _append_patiently(self, n: int, content: bytes) -> None:
        try:
            self.database.write(_APPEND, (n, content))
        except apsw.ConstraintError:
            self._explain_refusal(n, content)

    def _explain_refusal(self, n: int, content: bytes) -> None:
        """Return when row n is what the caller wants; raise what it is otherwise."""
        newest, seal = self._newest()
        row = self.database.row("SELECT content FROM log WHERE n = ?", (n,))
        check_refused(
            self.incarnation,
            n,
            content,
            newest=newest,
            sealed=seal is not None,
            stands_there=None if row is None else row[0],
        )

    def seal(self) -> int:
        """See `Store.seal`; only the log's part of it."""
        with self.database.transaction():
            newest, seal = self._newest()
            if seal is not None:
                check_seal(self.incarnation, newest, seal)
                return newest
            n = newest + 1
            # The transaction holds the write lock, so nothing can have come in at n or above, unless the file is
            # damaged: its pages may say one thing from the end and another one from the beginning.
            try:
                self.database.write("INSERT INTO log VALUES (?, 1, ?)", (n, seal_blob(self.incarnation, n)))
            except apsw.ConstraintError as error:
                raise self._damaged(f"row {n} is there and is not the newest") from error
            if self._newest()[0] != n:
                raise self._damaged(f"a row stands above its seal at {n}")
        return n

    def _damaged(self, story: str) -> CorruptRecord:
        return CorruptRecord(f"log {self.incarnation}: {story}; stop the app and restore the store from a backup")

    def _newest(self) -> tuple[int, object]:
        """The newest n, and its content if it is a seal, else None."""
        row = self.database.row(
            "SELECT n, CASE seal WHEN 0 THEN NULL ELSE content END FROM log ORDER BY n DESC LIMIT 1"
        )
        if row is None:
            raise no_birth(self.incarnation)
        return row[0], row[1]

    def read(self, after_n: int) -> list[LogRow]:
        """See `Store.read_log`."""
        rows = self.database.rows("SELECT n, seal, content FROM log WHERE n > max(?, 0) ORDER BY n", (after_n,))
        return batches(self.incarnation, rows)

    def delete_slice(self, through_n: int) -> bool:
        """Drop some of the rows up to `through_n`, in order; True when there are more to drop."""
        with self.database.transaction():
            rows = self.database.rows(
                "SELECT n, length(content) FROM log "
                "WHERE n BETWEEN 1 AND ? AND n < (SELECT max(n) FROM log WHERE seal = 0) ORDER BY n LIMIT ?",
                (through_n, DELETE_ROWS_MAX),
            )
            last, size = 0, 0
            for n, length in rows:
                last, size = n, size + length
                if size >= DELETE_BYTES_MAX:
                    break
            self.database.write("DELETE FROM log WHERE n BETWEEN 1 AND ?", (last,))
        return bool(rows) and (last < rows[-1][0] or len(rows) == DELETE_ROWS_MAX)

    def check(self) -> None:
        """Look over the whole file before somebody builds on what it says: a damaged page could hide rows. 25-60 ms for
        64 MiB, which is a third of what reading it costs."""
        found = self.database.rows("PRAGMA quick_check(1)")
        if found != [("ok",)]:
            raise self._damaged(found[0][0])

    def give_back_space(self) -> None:
        """Shrink the file of a sealed log: nobody will use the free pages again. A living one keeps them."""
        if self._newest()[1] is not None:
            self.database.rows("PRAGMA incremental_vacuum")
            # As a pragma it does what it can beside a reader (another successor), and reports no error.
            self.database.rows("PRAGMA wal_checkpoint(TRUNCATE)")


class OwnLogs:
    """The logs that this process appends to, for one thread; it waits for nothing else. Mostly there is one."""

    def __init__(self, folder: Path, app: str) -> None:
        self._folder = folder
        self._app = app
        self._logs: dict[int, LogFile] = {}

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def create(self, incarnation: int) -> None:
        create_log(self._folder, self._app, incarnation)
        self.log(incarnation)

    def log(self, incarnation: int) -> LogFile:
        log = self._logs.get(incarnation)
        if log is None:
            log = self._logs[incarnation] = LogFile(self._folder, self._app, incarnation)
        return log

    def has(self, incarnation: int) -> bool:
        return incarnation in self._logs

    def append(self, incarnation: int, n: int, content: bytes) -> None:
        self.log(incarnation).append(n, content)

    def delete_slice(self, incarnation: int, through_n: int) -> bool:
        return self.log(incarnation).delete_slice(through_n)


class OtherLogs:
    """The logs that this process takes over, for one thread. Recovery reads one log for many shards, so the last few
    stay open; closing one folds its WAL back, which a failover has no time for."""

    def __init__(self, folder: Path, app: str) -> None:
        self._folder = folder
        self._app = app
        self._logs: dict[int, LogFile] = {}  # the most recently used last

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def _log(self, incarnation: int) -> LogFile:
        log = self._logs.pop(incarnation, None) or LogFile(self._folder, self._app, incarnation)
        self._logs[incarnation] = log
        if len(self._logs) > OTHER_LOGS_OPEN_MAX:
            self._logs.pop(next(iter(self._logs))).close()
        return log

    def seal(self, incarnation: int, process: ProcessIdentity | None) -> int:
        """Rule 18: first the old process, which may hold this file's lock while it is stopped."""
        end_process(process)
        log = self._log(incarnation)
        n = log.seal()
        log.check()
        return n

    def read(self, incarnation: int, after_n: int) -> list[LogRow]:
        return self._log(incarnation).read(after_n)

    def delete_slice(self, incarnation: int, through_n: int) -> bool:
        more = self._log(incarnation).delete_slice(through_n)
        if not more:
            self._log(incarnation).give_back_space()
        return more

    def check(self, incarnation: int) -> list[str]:
        """What SQLite finds in the file; raises `CorruptRecord` for rows that are not in order."""
        log = self._log(incarnation)
        found = check_file(log.database)
        log.read(0)
        return found
