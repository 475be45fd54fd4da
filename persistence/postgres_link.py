"""Connections to one PostgreSQL database, how long anybody waits for it, and what its errors mean.

    lane      connections    carries
    append    1              appends: the hot path, alone with its connection
    lease     1              renewals, condemnations, sessions: never behind a checkpoint
    write     2              assign, move, claim, checkpoint
    log       2              seals, tails of other logs, dropped rows
    read      4              activations, ownership polls

That is what one process takes at most, and one more where its lease is kept on a loop of its own: a connection belongs
to the event loop that made it, so each loop has lanes of its own, made when they are first used.

A connection that did not answer in time is thrown away, never used again: what it was asked may still happen, and its
answer would be taken for another one's. Each new connection is asked which life of the server it leads to (Life).

Behind a pooler in transaction mode a connection leads to another of the server's each time. So nothing is left in a
session, no statement is kept prepared, and each transaction asks which life it is in: without that a host would not
notice a promotion, since the pooler keeps its connections open. What is one round trip elsewhere is six there.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
from msgspec import Struct

from ..actors.errors import AtollError, CorruptRecord, IncompatibleStore, StoreUnavailable
from .urls import Pooler, shown, split_pooler

if TYPE_CHECKING:
    from asyncpg.pool import Pool, PoolConnectionProxy

    Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

log = logging.getLogger("atoll.store")

CONNECT_TIMEOUT_S = 3.0
COMMAND_TIMEOUT_S = 6.0
"""Of one statement, at the client: above the role's `statement_timeout` (5 s), whose story is the better one. A link
that is cut says nothing at all, and this ends the wait."""
LANE_TIMEOUT_S = 10.0
"""How long a call waits for a connection of its lane: those before it are slow, or the server is away."""
CLOSE_TIMEOUT_S = 5.0
SNAPSHOT_IDLE = "5min"
"""How long whoever reads a whole store as of one instant may do something else between two reads."""
STATEMENTS_KEPT = 100
"""Prepared, on each connection: more than there are."""


NO_ANSWER = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class Lane(enum.Enum):
    """What a connection is for, and how many there are of it."""

    APPEND = ("append", 1)
    LEASE = ("lease", 1)
    WRITE = ("write", 2)
    LOG = ("log", 2)
    READ = ("read", 4)


class Life(Struct, frozen=True):
    """Which server this is, and in which of its lives. A standby that is promoted begins a new timeline, and may lack
    the last commits of the old one."""

    system_identifier: int
    timeline: int


_LIFE = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END
"""
NOT_SAID = (
    "a pooler stands between, and the store's URL does not say so: add ?pooler=transaction (or pooler=session, if that "
    "is its pool_mode), or name the server itself"
)

_END_STALLED = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
  AND wait_event = 'ClientRead' AND xact_start IS NOT NULL AND state_change < clock_timestamp() - interval '1 second'
"""


async def life_of(connection: Connection | asyncpg.Connection[asyncpg.Record]) -> Life:
    """Raises `StoreUnavailable` on a standby, which takes no writes (yet)."""
    row = await connection.fetchrow(_LIFE)
    assert row is not None
    if row[1] is None:
        raise StoreUnavailable("this PostgreSQL server is a standby: name the primary, or wait for its promotion")
    return Life(row[0], int(row[1][:8], 16))  # a WAL file's name begins with its timeline


async def connect(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """One connection outside of all lanes, for what its owner does by hand, in one transaction."""
    rest, _pooler = split_pooler(url)
    try:
        # Nothing prepared: behind a pooler its name may be taken.
        return await asyncpg.connect(rest, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0)
    except NO_ANSWER as error:
        raise StoreUnavailable(f"{shown(url)}: {no_connection(error)}") from error


class Link:
    """All connections of a store."""

    def __init__(self, url: str, met: Callable[[Life], None]) -> None:
        """`met` is told where each new connection leads, and raises what is to be raised there."""
        self._url, self._pooler = split_pooler(url)
        self._met = met
        self._pools: dict[tuple[asyncio.AbstractEventLoop, Lane], Pool[asyncpg.Record]] = {}
        self.place = shown(url)

    @contextlib.asynccontextmanager
    async def lent(self, lane: Lane) -> AsyncIterator[Connection]:
        """A connection of that lane, on which each statement commits by itself; behind a pooler all of them together.
        Errors of the database come out as those of actors/errors.py."""
        borrowed = self.transaction if self._pooler is Pooler.TRANSACTION else self._borrowed
        async with borrowed(lane) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _borrowed(self, lane: Lane) -> AsyncIterator[Connection]:
        pool = await self._pool(lane)
        try:
            connection = await pool.acquire(timeout=LANE_TIMEOUT_S)
        except NO_ANSWER as error:
            raise StoreUnavailable(f"{self.place}: {no_connection(error)}") from error
        except asyncpg.PostgresError as error:
            raise store_error(error, self.place) from error
        try:
            yield connection
        except asyncpg.LockNotAvailableError as error:
            try:
                await _end_stalled(connection)
            except (asyncpg.PostgresError, *NO_ANSWER):
                _throw_away(connection)  # whoever waits next tries again
            raise store_error(error, self.place) from error
        except asyncpg.PostgresError as error:
            raise store_error(error, self.place) from error
        except (AtollError, ValueError):
            raise  # our own word on an answer: the connection is as it was
        except NO_ANSWER as error:
            _throw_away(connection)
            raise store_error(error, self.place) from error
        except BaseException:
            _throw_away(connection)
            raise
        finally:
            await pool.release(connection)

    @contextlib.asynccontextmanager
    async def transaction(self, lane: Lane, begin: str = "BEGIN") -> AsyncIterator[Connection]:
        """A connection in a transaction that commits at the end. On an error it rolls back if the server still answers;
        a connection that was thrown away the server rolls back itself."""
        async with self._borrowed(lane) as connection:
            await connection.execute(begin)
            try:
                if self._pooler is Pooler.TRANSACTION:
                    self._met(await life_of(connection))
                yield connection
            except (asyncpg.PostgresError, AtollError, ValueError):
                await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")

    @contextlib.asynccontextmanager
    async def snapshot(self, lane: Lane) -> AsyncIterator[Connection]:
        """A connection whose reads are all as of one instant."""
        async with self.transaction(lane, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[Still]:
        """All reads as of one instant, for longer than a host may take."""
        async with self.snapshot(Lane.READ) as connection:
            await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{SNAPSHOT_IDLE}'")
            yield Still(connection, self.place)

    async def _pool(self, lane: Lane) -> Pool[asyncpg.Record]:
        key = (asyncio.get_running_loop(), lane)
        pool = self._pools.get(key)
        if pool is None:
            _name, size = lane.value
            pool = self._pools[key] = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=size,
                # The lanes of the hot path stay connected; the others give back what they do not need.
                max_inactive_connection_lifetime=0.0 if lane in {Lane.APPEND, Lane.LEASE} else 300.0,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                statement_cache_size=0 if self._pooler is Pooler.TRANSACTION else STATEMENTS_KEPT,
                init=self._meet,
                reset=_nothing_to_reset,
            )
            await pool  # makes it ready; connects to nothing yet, so it does not wait
        return pool

    async def _meet(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        if self._pooler is Pooler.NONE and await connection.fetchval("SELECT pg_backend_pid()") != (
            connection.get_server_pid()  # a pooler makes them up
        ):
            raise IncompatibleStore(f"{self.place}: {NOT_SAID}")
        self._met(await life_of(connection))

    async def close(self) -> None:
        """Of this loop: what is under way may end. Of other loops: at once, on their own threads."""
        here = asyncio.get_running_loop()
        pools, self._pools = self._pools, {}
        for (loop, _lane), pool in pools.items():
            if loop is here:
                try:
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await pool.close()
                except TimeoutError:
                    pool.terminate()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(pool.terminate)


class Still:
    """In the place of a `Link`: one connection inside a snapshot, which everybody reads through in turn."""

    def __init__(self, connection: Connection, place: str) -> None:
        self.place = place
        self._connection = connection
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lent(self, _lane: Lane) -> AsyncIterator[Connection]:
        async with self._turn:
            yield self._connection

    snapshot = lent

    def transaction(self, _lane: Lane) -> AbstractAsyncContextManager[Connection]:
        raise RuntimeError("a snapshot of a store is read only")

    async def close(self) -> None:
        """Whoever made the snapshot ends it."""


async def _end_stalled(connection: Connection) -> None:
    """Whoever waited for a lock in vain ends the sessions that keep theirs without a word from their client: those of a
    process that was stopped (rule 18). The server's own limits do not count while a message is half received."""
    ended = [row["pid"] for row in await connection.fetch(_END_STALLED)]
    if ended:
        log.warning("ended sessions that held locks and were silent for a second: %s", ended)


def _throw_away(connection: Connection) -> None:
    """Not to be used again. At once: asyncpg is about to send a cancel request, and this calls it off. A commit that is
    cancelled while it waits for a synchronous standby becomes one that only this server has. A connection that the
    server has closed already is back in its pool, and gone there."""
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _nothing_to_reset(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Nobody leaves anything in a session: no settings, locks or cursors. asyncpg's own reset costs a round trip."""


_BROKEN_SCHEMA = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
)
_DAMAGED = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)
_UNKNOWN_OUTCOME = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # a statement over its time, a server that shuts down, crashed or starts
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.PostgresSystemError,  # an I/O error: what was to be written may well be durable
    asyncpg.InternalServerError,
    asyncpg.TransactionRollbackError,  # deadlock, serialization: it was rolled back
    asyncpg.ObjectNotInPrerequisiteStateError,  # a lock that is not to be had, a database that lets nobody in
    asyncpg.ReadOnlySQLTransactionError,  # the server became a standby
    asyncpg.InvalidTransactionStateError,  # idle in a transaction for too long: its session was ended
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


def no_connection(error: Exception) -> str:
    """Why there is none, and what to do. Nothing was asked."""
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"{error.verify_message}: the certificate does not prove that it is this server; check sslrootcert, "
                "and that the URL names the server as its certificate does"
            )
        case FileNotFoundError() | PermissionError():
            return (
                f"{error}: a file that the store's URL names cannot be read (sslrootcert, sslcert, sslkey), or there "
                "is no server at the socket that it names"
            )
        case asyncpg.ClientConfigurationError():
            return f"{error}: correct the options of the store's URL"
        case ConnectionError() if "rejected SSL" in str(error):  # the driver has no class for it
            return f"{error}: sslmode in the store's URL demands TLS, turn it on at the server (ssl = on)"
        case _:
            return f"no connection: {error or type(error).__name__}"


def store_error(error: Exception, place: str) -> Exception:
    """What an error of the database or of the way to it means for the caller."""
    story = f"{place}: {error or type(error).__name__}"
    match error:
        case asyncpg.InsufficientPrivilegeError():
            return IncompatibleStore(
                f"{story}: give the runtime role its rights as deploy/postgresql/database.sql does"
            )
        case asyncpg.InvalidSQLStatementNameError() | asyncpg.DuplicatePreparedStatementError():
            return IncompatibleStore(f"{story}: {NOT_SAID}")
        case _ if isinstance(error, _BROKEN_SCHEMA):
            return IncompatibleStore(f"{story}: its tables are not those of this version: run `atoll store migrate`")
        case _ if isinstance(error, _DAMAGED):
            return CorruptRecord(f"{story}: stop the app and restore the database from a backup")
        case asyncpg.InvalidAuthorizationSpecificationError() | asyncpg.InvalidCatalogNameError():
            return StoreUnavailable(f"{story}: check user, password and database of the store's URL")
        case asyncpg.DiskFullError():
            return StoreUnavailable(
                f"{story}: make room on the server's disk; the same call is repeated until it succeeds"
            )
        case asyncpg.TooManyConnectionsError():
            return StoreUnavailable(f"{story}: raise max_connections, or run fewer hosts on this server")
        case _ if isinstance(error, _UNKNOWN_OUTCOME):
            return StoreUnavailable(f"{story}: the outcome is unknown, repeat the same call")
        case asyncpg.PostgresError():
            return error  # a mistake of ours: let it be seen as what it is
        case _:
            return StoreUnavailable(f"{story}: no answer, the outcome is unknown, repeat the same call")
