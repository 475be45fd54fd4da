"""A primary and its standby, which lacks what it was not given when it is promoted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import asyncpg
from postgres_server import PostgresServer

from atoll.actors.errors import StoreUnavailable
from atoll.persistence.postgres import PostgresStore

DATABASE = "bank"


class Pair:
    """A primary and its standby, behind the one URL that a store has."""

    def __init__(self, primary: PostgresServer, standby: PostgresServer) -> None:
        self.primary = primary
        self.standby = standby
        ports = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        tail = f"{ports}/{DATABASE}?target_session_attrs=any"
        self.url = f"postgresql://atoll_runtime@{tail}"
        self.owner_url = f"postgresql://atoll_owner@{tail}"

    def lose_the_primary(self) -> None:
        self.primary.kill()
        self.standby.tool("pg_ctl", "promote", "-w", "-D", str(self.standby.data))

    async def until_replayed(self) -> None:
        """Until the standby has all that the primary has."""
        primary = await asyncpg.connect(self.primary.admin_url())
        standby = await asyncpg.connect(self.standby.admin_url())
        written = await primary.fetchval("SELECT pg_current_wal_flush_lsn()")
        while await standby.fetchval("SELECT pg_last_wal_replay_lsn() < $1::pg_lsn", written):  # noqa: ASYNC110  another process's doing
            await asyncio.sleep(0.01)
        await primary.close()
        await standby.close()

    async def hold_back(self) -> None:
        """From here on the standby replays nothing: what is committed now it lacks when it is promoted."""
        await self.until_replayed()
        connection = await asyncpg.connect(self.standby.admin_url())
        await connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
        await connection.execute("SELECT pg_reload_conf()")
        while await connection.fetchval("SELECT count(*) FROM pg_stat_wal_receiver"):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.01)
        await connection.close()


@contextlib.contextmanager
def server_pair() -> Iterator[Pair]:
    """With the tables of a store. Servers of their own: a promotion cannot be undone."""
    with PostgresServer.start() as primary, contextlib.ExitStack() as stack:
        primary.create_store(DATABASE)
        yield Pair(primary, stack.enter_context(primary.standby()))


async def patiently(store: PostgresStore, host: int, n: int) -> None:
    """Append again and again while the outcome is unknown, as a host does: the connections to a lost server end first."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await store.append(host, n, b"row %d" % n)
