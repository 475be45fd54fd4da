"""leases.db: hosts, their leases, and client sessions. Tiny, and never behind a checkpoint of the tables.

Two connections of one thread. What must survive a power cut (a new incarnation, a condemnation, a drain, a seal) is
written with `synchronous=FULL`. A renewal need not: after a power cut nobody who held a lease is alive. It is written
without waiting for the disk, so a host is next to never stopped while it holds this file's lock, and a slow disk costs
nobody the lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import apsw
from msgspec.structs import replace

from ..actors.errors import CorruptRecord
from . import ownership
from .host_rows import about_blob, host_row, host_state
from .row_checks import Problems
from .spi import HostRow, HostState, Numbers
from .sqlite_file import Database, check_file, create_file

LOCK_WAIT_S = 1.0
"""A renewal that waits longer is useless: the lease runs on, and the next try comes after a second."""

_SCHEMA = """
CREATE TABLE counters (             -- the last incarnation and the last client ever given out
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (                -- one row per incarnation, for ever
    incarnation INTEGER PRIMARY KEY,
    state       TEXT NOT NULL,      -- live, gone, sealed
    renewals    INTEGER NOT NULL,
    about       BLOB NOT NULL       -- host_rows.py
) STRICT;

CREATE INDEX hosts_not_sealed ON hosts (incarnation) WHERE state <> 'sealed';

CREATE TABLE sessions (
    client   INTEGER PRIMARY KEY,
    renewals INTEGER NOT NULL
) STRICT;

INSERT INTO counters VALUES ('incarnation', 0), ('client', 0);
"""


def leases_path(folder: Path) -> Path:
    return folder / "leases.db"


def create_leases(folder: Path) -> bool:
    def fill(_connection: apsw.Connection) -> None:
        """The schema brings its rows along."""

    return create_file(leases_path(folder), _SCHEMA, fill)


class Leases:
    """Both connections to leases.db, for one thread."""

    def __init__(self, folder: Path) -> None:
        self._durable = Database(leases_path(folder), lock_wait_s=LOCK_WAIT_S)
        try:
            self._quick = Database(leases_path(folder), synchronous="NORMAL", lock_wait_s=LOCK_WAIT_S)
        except BaseException:
            self._durable.close()
            raise

    def close(self) -> None:
        self._quick.close()
        self._durable.close()

    # ---- hosts -----------------------------------------------------------------------------------------------
    def reserve_incarnation(self) -> int:
        """A number that no one has or will get. Its host becomes visible with `add_host`, or never."""
        return self._count("incarnation")

    def add_host(self, row: HostRow) -> None:
        self._durable.write(
            "INSERT INTO hosts VALUES (?, ?, ?, ?)", (row.incarnation, row.state.value, row.renewals, about_blob(row))
        )

    def renew(self, incarnation: int) -> bool:
        changed = self._quick.write(
            "UPDATE hosts SET renewals = renewals + 1 WHERE incarnation = ? AND state = 'live'", (incarnation,)
        )
        return changed == 1

    def condemn(self, incarnation: int, renewals: int) -> bool:
        with self._durable.transaction():
            row = self._durable.row("SELECT state, renewals FROM hosts WHERE incarnation = ?", (incarnation,))
            if row is None:
                return False
            before = host_state(incarnation, row[0])
            after = ownership.condemned(before, row[1], renewals)
            if after is not before:
                self._set_state(incarnation, after)
        return after is not HostState.LIVE

    def set_draining(self, incarnation: int, draining: bool) -> bool:
        with self._durable.transaction():
            row = read_host(self._durable, incarnation)
            if row is None or row.state is not HostState.LIVE:
                return False
            if row.draining != draining:
                about = about_blob(replace(row, draining=draining))
                self._durable.write("UPDATE hosts SET about = ? WHERE incarnation = ?", (about, incarnation))
        return True

    def mark_sealed(self, incarnation: int) -> None:
        self._set_state(incarnation, HostState.SEALED)

    def _set_state(self, incarnation: int, state: HostState) -> None:
        self._durable.write("UPDATE hosts SET state = ? WHERE incarnation = ?", (state.value, incarnation))

    def host(self, incarnation: int) -> HostRow | None:
        return read_host(self._quick, incarnation)

    def is_registered(self, incarnation: int) -> bool:
        return self._quick.row("SELECT 1 FROM hosts WHERE incarnation = ?", (incarnation,)) is not None

    def hosts_not_sealed(self) -> list[HostRow]:
        return [host_row(*row) for row in self._quick.rows("SELECT * FROM hosts WHERE state <> 'sealed'")]

    def hosts_ended(self) -> list[int]:
        rows = self._quick.rows("SELECT incarnation FROM hosts WHERE state <> 'live' ORDER BY incarnation")
        return [incarnation for (incarnation,) in rows]

    def hosts_named(self, incarnations: Iterable[int]) -> list[HostRow]:
        return [row for incarnation in incarnations if (row := self.host(incarnation)) is not None]

    # ---- client sessions -------------------------------------------------------------------------------------
    def open_session(self) -> int:
        with self._durable.transaction():
            client = self._count("client")
            self._durable.write("INSERT INTO sessions VALUES (?, 0)", (client,))
        return client

    def touch_sessions(self, clients: Sequence[int]) -> set[int]:
        """One slice: at most `SESSIONS_AT_ONCE` of them. Which have no session?"""
        missing = set()
        with self._quick.transaction():
            for client in clients:
                if not self._quick.write("UPDATE sessions SET renewals = renewals + 1 WHERE client = ?", (client,)):
                    missing.add(client)
        return missing

    def sessions(self) -> dict[int, int]:
        return dict(self._quick.rows("SELECT client, renewals FROM sessions"))

    def expire_sessions(self, observed: Sequence[tuple[int, int]]) -> set[int]:
        """One slice: at most `SESSIONS_AT_ONCE` of them. Which have no session any more?"""
        gone = set()
        with self._durable.transaction():
            for client, renewals in observed:
                self._durable.write("DELETE FROM sessions WHERE client = ? AND renewals = ?", (client, renewals))
                if self._durable.row("SELECT 1 FROM sessions WHERE client = ?", (client,)) is None:
                    gone.add(client)
        return gone

    # ---- upkeep ----------------------------------------------------------------------------------------------
    def check(self) -> list[str]:
        """What SQLite finds in the file, and rows of hosts that do not prove themselves."""
        problems = Problems()
        for row in self._quick.rows("SELECT * FROM hosts"):
            problems.hear(lambda row=row: host_row(*row))  # type: ignore[misc]  # a default binds it now
        return check_file(self._quick) + problems.lines

    def all_incarnations(self) -> list[int]:
        return [row[0] for row in self._quick.rows("SELECT incarnation FROM hosts ORDER BY incarnation")]

    # ---- import ----------------------------------------------------------------------------------------------
    def numbers(self) -> Numbers:
        values: dict[str, int] = dict(self._quick.rows("SELECT name, value FROM counters"))
        return Numbers(values["incarnation"], values["client"])

    def load(self, numbers: Numbers, sessions: Mapping[int, int]) -> None:
        with self._durable.transaction():
            for name, value in (("incarnation", numbers.incarnation), ("client", numbers.client)):
                self._durable.write("UPDATE counters SET value = max(value, ?) WHERE name = ?", (value, name))
            self._durable.write_all("INSERT OR REPLACE INTO sessions VALUES (?, ?)", list(sessions.items()))

    def _count(self, name: str) -> int:
        rows = self._durable.rows("UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (name,))
        if not rows:
            raise CorruptRecord(f"leases.db: the counter {name!r} is missing; restore this store from a backup")
        value: int = rows[0][0]
        return value


def read_host(database: Database, incarnation: int) -> HostRow | None:
    row = database.row("SELECT * FROM hosts WHERE incarnation = ?", (incarnation,))
    return None if row is None else host_row(*row)
