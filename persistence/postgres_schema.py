"""The schema of a PostgreSQL store: numbered SQL files, applied in order by the role that owns the tables.

    postgres_migrations/0001_tables.sql      what version 1 added
    postgres_migrations/0002_pins.sql        what version 2 added

A version is never changed once it was released; the next one says what is different. Hosts apply nothing: they refuse
a store of another version than theirs.
"""

from __future__ import annotations

from importlib.resources import files

from ..actors.errors import IncompatibleStore

FOLDER = "postgres_migrations"
MIGRATION_LOCK = 0x41746F6C
"""`Atol`: the advisory lock of whoever migrates a database."""
VERSIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_versions (   -- which migrations were applied
    version integer PRIMARY KEY,
    file    text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
)
"""


def migrations() -> list[tuple[int, str, str]]:
    """(version, file, SQL) of all, in order of version."""
    found = [path for path in (files(__package__) / FOLDER).iterdir() if path.name.endswith(".sql")]
    return sorted((int(path.name.split("_")[0]), path.name, path.read_text(encoding="utf-8")) for path in found)


def newest_version() -> int:
    return migrations()[-1][0]


def check_version(found: int | None, place: str) -> None:
    """Raise `IncompatibleStore` unless the database has exactly the schema that this code reads. None: it has none."""
    newest = newest_version()
    if found is None:
        raise IncompatibleStore(
            f"there are no tables of Atoll in {place}: make them with `atoll store migrate --store URL`, as the role "
            "that is to own them (deploy/postgresql/ has the set-up)"
        )
    if found > newest:
        raise newer(found, place)
    if found < newest:
        raise IncompatibleStore(
            f"{place} has schema version {found}, this version of atoll needs {newest}: stop the app, then run "
            "`atoll store migrate --store URL` as the role that owns the tables"
        )


def newer(found: int, place: str) -> IncompatibleStore:
    return IncompatibleStore(
        f"{place} has schema version {found}, this version of atoll knows {newest_version()}: upgrade atoll"
    )
