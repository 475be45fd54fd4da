"""What the role that owns the tables does, by hand: bring the schema up to date, and accept a promotion."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg

from ..actors.errors import IncompatibleStore
from .postgres_link import CONNECT_TIMEOUT_S, NO_ANSWER, connect, life_of, store_error
from .postgres_meta import accept_life, read_meta, version_of
from .postgres_schema import MIGRATION_LOCK, VERSIONS_TABLE, check_version, migrations, newer
from .urls import shown

if TYPE_CHECKING:
    from .postgres_link import Life


@contextlib.asynccontextmanager
async def _as_owner(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection in a transaction that nobody else who migrates this database has at the same time."""
    place = shown(url)
    try:
        connection = await connect(url)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
                yield connection
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    except asyncpg.InsufficientPrivilegeError as error:
        raise IncompatibleStore(f"{place}: {error}: name the role that owns the tables in the URL") from error
    except (asyncpg.PostgresError, *NO_ANSWER) as error:
        explained = store_error(error, place)
        if explained is error:
            raise IncompatibleStore(f"{place}: {error}: nothing was changed") from error
        raise explained from error


async def migrate(url: str) -> list[str]:
    """Apply the migrations that the database lacks, all or none of them; return their names. Raises `IncompatibleStore`
    for a database that is newer than this code."""
    async with _as_owner(url) as connection:
        await connection.execute(VERSIONS_TABLE)
        found = await version_of(connection) or 0
        known = migrations()
        if found > known[-1][0]:
            raise newer(found, shown(url))
        missing = [migration for migration in known if migration[0] > found]
        for version, file, sql in missing:
            await connection.execute(sql)
            await connection.execute("INSERT INTO schema_versions (version, file) VALUES ($1, $2)", version, file)
    return [file for _version, file, _sql in missing]


async def accept(url: str, *, synchronous: bool) -> Life:
    """Let the store go on in the life that its server is in now (see postgres_meta.py); `synchronous` also in all later
    ones. Every host of a former life must have ended; those of this one learn what was said when they start."""
    async with _as_owner(url) as connection:
        check_version(await version_of(connection), shown(url))
        meta = await read_meta(connection)
        if meta is None:
            raise IncompatibleStore(f"{shown(url)} holds no app yet: start one first")
        life = await life_of(connection)
        await accept_life(connection, meta, life, synchronous=synchronous)
    return life
