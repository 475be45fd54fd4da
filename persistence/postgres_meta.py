"""What a PostgreSQL store says of itself: schema version, app, shard count, stripe, and the life of its server.

A standby that is promoted may lack the last commits of the server that it follows. Positions, seals and incarnations
would go back, and be given out a second time: the one thing that nothing above could repair. PostgreSQL begins a new
timeline with each promotion, so a store remembers its timeline and refuses another one, until somebody who knows that
nothing was lost says so (`atoll store accept`), or has said of the database that its promotions never lose anything
(`--synchronous`). Its server's identifier tells a restored copy, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from ..actors.errors import IncompatibleStore
from .postgres_link import Life
from .postgres_schema import check_version
from .postgres_tables import create_shards
from .spi import check_loading
from .stripes import Stripe, check_stripe

if TYPE_CHECKING:
    import asyncpg

    from .postgres_link import Connection

IDS_SKIPPED = 1 << 32
"""Incarnations and clients that are never given out after a promotion: more than the old server can have had."""

_TO_BE_SEEN = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout")
"""Limits without which a host that is cut off keeps its locks (deploy/postgresql/roles.sql)."""


class Meta(Struct, frozen=True):
    app: str
    shards: int
    stripe: Stripe
    life: Life
    synchronous: bool
    """Promotions lose nothing: its owner said so."""


async def version_of(connection: Connection | asyncpg.Connection[asyncpg.Record]) -> int | None:
    """The schema version of the database; None when there are no tables of ours."""
    if await connection.fetchval("SELECT to_regclass('schema_versions')") is None:
        return None
    version: int | None = await connection.fetchval("SELECT max(version) FROM schema_versions")
    return version


async def open_meta(connection: Connection, place: str, app: str, shards: int, stripe: Stripe, life: Life) -> Meta:
    """Inside a transaction: create the content of the store if nobody has. Raises `IncompatibleStore` unless it is that
    stripe of the store of `app` with that many shards, at this version."""
    check_version(await version_of(connection), place)
    numbers = stripe.shards(shards)
    created = await connection.execute(
        "INSERT INTO meta (app, shards, stripe, stripes, family, system_identifier, timeline) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        app.encode(),
        shards,
        stripe.index,
        stripe.count,
        stripe.family,
        life.system_identifier,
        life.timeline,
    )
    if created == "INSERT 0 1":  # whoever comes second waits here until this transaction ends
        await create_shards(connection, numbers)
    meta = await read_meta(connection)
    assert meta is not None
    if meta.app != app:
        raise IncompatibleStore(f"{place} holds the app {meta.app!r}, not {app!r}: choose another database for {app!r}")
    if meta.shards != shards:
        raise IncompatibleStore(
            f"{place} was made with {meta.shards} shards, not {shards}, and the count is fixed at creation: "
            f"set shards to {meta.shards}, or start {app!r} on another database"
        )
    check_stripe(meta.stripe, stripe, place)
    if meta.life != life:
        check_promotion(meta.life, life, place, synchronous=meta.synchronous)
        await connection.execute("UPDATE meta SET timeline = $1", life.timeline)
    return meta


async def read_meta(connection: Connection | asyncpg.Connection[asyncpg.Record]) -> Meta | None:
    row = await connection.fetchrow(
        "SELECT app, shards, stripe, stripes, family, system_identifier, timeline, synchronous FROM meta"
    )
    if row is None:
        return None
    return Meta(row[0].decode(), row[1], Stripe(row[2], row[3], row[4]), Life(row[5], row[6]), row[7])


async def loads(connection: Connection, app: str | None = None) -> bool:
    """Inside a transaction. False when it is the store of `app` already. Raises `ValueError` when it is not being
    loaded."""
    name = (await connection.fetchval("SELECT app FROM meta FOR SHARE")).decode()
    if name == app:
        return False
    check_loading(name)
    return True


async def finish_load(connection: Connection, app: str) -> None:
    await connection.execute("UPDATE meta SET app = $1", app.encode())


def check_promotion(known: Life, found: Life, place: str, *, synchronous: bool) -> None:
    """Raises `IncompatibleStore` unless `found` is a later life of the same server, and `synchronous`."""
    if known.system_identifier != found.system_identifier:
        what = "is a copy on another server: what was committed after it was taken is missing in it"
    elif found.timeline < known.timeline:
        what = f"is on timeline {found.timeline}, and timeline {known.timeline} was seen already: an outdated server"
    elif synchronous:
        return
    else:
        what = (
            f"was promoted or restored (timeline {found.timeline}, the store was last used on {known.timeline}): "
            "commits may be missing in it"
        )
    raise IncompatibleStore(
        f"{place} {what}. Where nothing is missing, because the replication is synchronous, or where it is to go on "
        "with what is there: end every host of the app, then run `atoll store accept`"
    )


async def accept_life(
    connection: asyncpg.Connection[asyncpg.Record], meta: Meta, life: Life, *, synchronous: bool
) -> None:
    """Inside a transaction, as the owner: go on in this life of the server. If it is a new one, whoever lived in the
    former one is condemned, and no number that may have been given out there is given out again."""
    await connection.execute(
        "UPDATE meta SET system_identifier = $1, timeline = $2, synchronous = $3",
        life.system_identifier,
        life.timeline,
        synchronous,
    )
    if meta.life == life:
        return
    await connection.execute("UPDATE counters SET value = value + $1", IDS_SKIPPED)
    await connection.execute("UPDATE hosts SET state = 'gone' WHERE state = 'live'")


async def check_durable(connection: Connection, place: str) -> None:
    """Raises `IncompatibleStore` where an answer would not mean that what it confirms is on disk."""
    rows = await connection.fetch(
        "SELECT name FROM pg_settings "
        "WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name"
    )
    if rows:
        names = ", ".join(row["name"] for row in rows)
        raise IncompatibleStore(
            f"{place} is not durable: {names} off; turn it on (the server's settings, the role's, the URL's)"
        )


async def unlimited(connection: Connection) -> list[str]:
    """The limits that this role lacks."""
    rows = await connection.fetch(
        "SELECT name FROM pg_settings WHERE name = ANY ($1) AND setting = '0' ORDER BY name", list(_TO_BE_SEEN)
    )
    return [row["name"] for row in rows]
