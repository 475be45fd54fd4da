"""Hosts, their leases, and client sessions in PostgreSQL.

Renewals are durable like everything else. On SQLite a power cut that loses one has ended its host, too; here the server
may crash alone. A renewal that it forgot would make the coordinator's silence begin before the host's lease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from . import ownership
from .host_rows import about_blob, host_row, host_state
from .row_checks import Problems
from .spi import HostRow, HostState, Numbers

if TYPE_CHECKING:
    from .postgres_link import Connection

_LOAD_SESSIONS = """
INSERT INTO sessions (client, renewals) SELECT * FROM unnest($1::bigint[], $2::bigint[])
ON CONFLICT (client) DO UPDATE SET renewals = excluded.renewals
"""
_COUNT = "UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value"
_HOSTS = "SELECT incarnation, state, renewals, about FROM hosts "
_OPEN_SESSION = """
WITH next AS (UPDATE counters SET value = value + 1 WHERE name = 'client' RETURNING value)
INSERT INTO sessions (client, renewals) SELECT value, 0 FROM next RETURNING client
"""
# Both lock the rows in order first: two hosts that know the same clients would else wait for each other.
_TOUCH = """
WITH touched AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS t (client, times)),
     locked AS (SELECT client FROM sessions WHERE client = ANY ($1) ORDER BY client FOR UPDATE)
UPDATE sessions SET renewals = renewals + times
FROM touched JOIN locked USING (client) WHERE sessions.client = touched.client RETURNING sessions.client
"""
_EXPIRE = """
WITH seen AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS s (client, renewals)),
     locked AS (SELECT client FROM sessions WHERE client = ANY ($1) ORDER BY client FOR UPDATE)
DELETE FROM sessions USING seen JOIN locked USING (client)
WHERE sessions.client = seen.client AND sessions.renewals = seen.renewals
"""


async def next_incarnation(connection: Connection) -> int:
    """Inside the transaction that registers the host."""
    incarnation: int = await connection.fetchval(_COUNT, "incarnation")
    return incarnation


async def add_host(connection: Connection, row: HostRow) -> None:
    await connection.execute(
        "INSERT INTO hosts (incarnation, state, renewals, about) VALUES ($1, $2, $3, $4)",
        row.incarnation,
        row.state.value,
        row.renewals,
        about_blob(row),
    )


async def renew(connection: Connection, incarnation: int) -> bool:
    done = await connection.execute(
        "UPDATE hosts SET renewals = renewals + 1 WHERE incarnation = $1 AND state = 'live'", incarnation
    )
    return done == "UPDATE 1"


async def condemn(connection: Connection, incarnation: int, renewals: int) -> bool:
    """Inside a transaction."""
    row = await connection.fetchrow("SELECT state, renewals FROM hosts WHERE incarnation = $1 FOR UPDATE", incarnation)
    if row is None:
        return False
    before = host_state(incarnation, row["state"])
    after = ownership.condemned(before, row["renewals"], renewals)
    if after is not before:
        await _set_state(connection, incarnation, after)
    return after is not HostState.LIVE


async def set_draining(connection: Connection, incarnation: int, draining: bool) -> bool:
    """Inside a transaction."""
    await connection.execute("SELECT 1 FROM hosts WHERE incarnation = $1 FOR UPDATE", incarnation)
    row = await host(connection, incarnation)
    if row is None or row.state is not HostState.LIVE:
        return False
    if row.draining != draining:
        about = about_blob(replace(row, draining=draining))
        await connection.execute("UPDATE hosts SET about = $2 WHERE incarnation = $1", incarnation, about)
    return True


async def mark_sealed(connection: Connection, incarnation: int) -> None:
    await _set_state(connection, incarnation, HostState.SEALED)


async def _set_state(connection: Connection, incarnation: int, state: HostState) -> None:
    await connection.execute("UPDATE hosts SET state = $2 WHERE incarnation = $1", incarnation, state.value)


async def host(connection: Connection, incarnation: int) -> HostRow | None:
    row = await connection.fetchrow(_HOSTS + "WHERE incarnation = $1", incarnation)
    return None if row is None else host_row(*row)


async def is_registered(connection: Connection, incarnation: int) -> bool:
    return await connection.fetchval("SELECT 1 FROM hosts WHERE incarnation = $1", incarnation) is not None


async def hosts_not_sealed(connection: Connection) -> list[HostRow]:
    return [host_row(*row) for row in await connection.fetch(_HOSTS + "WHERE state <> 'sealed'")]


async def hosts_named(connection: Connection, incarnations: Iterable[int]) -> list[HostRow]:
    rows = await connection.fetch(_HOSTS + "WHERE incarnation = ANY ($1)", list(incarnations))
    return [host_row(*row) for row in rows]


async def hosts_ended(connection: Connection) -> list[int]:
    rows = await connection.fetch("SELECT incarnation FROM hosts WHERE state <> 'live' ORDER BY incarnation")
    return [row["incarnation"] for row in rows]


# ---- client sessions ---------------------------------------------------------------------------------------------


async def open_session(connection: Connection) -> int:
    client: int = await connection.fetchval(_OPEN_SESSION)
    return client


async def touch_sessions(connection: Connection, clients: Sequence[int]) -> set[int]:
    """One slice. Which have no session?"""
    times = Counter(clients)
    touched = await connection.fetch(_TOUCH, list(times), list(times.values()))
    return times.keys() - {row["client"] for row in touched}


async def sessions(connection: Connection) -> dict[int, int]:
    return {row["client"]: row["renewals"] for row in await connection.fetch("SELECT client, renewals FROM sessions")}


async def expire_sessions(connection: Connection, observed: Sequence[tuple[int, int]]) -> set[int]:
    """One slice, inside a transaction. Which have no session any more?"""
    clients = [client for client, _renewals in observed]
    await connection.execute(_EXPIRE, clients, [renewals for _client, renewals in observed])
    left = await connection.fetch("SELECT client FROM sessions WHERE client = ANY ($1)", clients)
    return set(clients) - {row["client"] for row in left}


# ---- upkeep --------------------------------------------------------------------------------------------------------


async def check(connection: Connection) -> list[str]:
    """Rows of hosts that do not prove themselves."""
    problems = Problems()
    for row in await connection.fetch(_HOSTS):
        problems.hear(lambda row=row: host_row(*row))  # type: ignore[misc]  # a default binds it now
    return problems.lines


async def all_incarnations(connection: Connection) -> list[int]:
    return [row[0] for row in await connection.fetch("SELECT incarnation FROM hosts ORDER BY incarnation")]


# ---- import --------------------------------------------------------------------------------------------------------


async def numbers(connection: Connection) -> Numbers:
    values = {row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM counters")}
    return Numbers(values["incarnation"], values["client"])


async def load(connection: Connection, numbers: Numbers, sessions: Mapping[int, int]) -> None:
    """Inside a transaction."""
    for name, value in (("incarnation", numbers.incarnation), ("client", numbers.client)):
        await connection.execute("UPDATE counters SET value = greatest(value, $2) WHERE name = $1", name, value)
    await connection.execute(_LOAD_SESSIONS, list(sessions), list(sessions.values()))
