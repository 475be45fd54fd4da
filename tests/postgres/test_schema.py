"""The owner makes the tables, the runtime role writes rows, and versions that do not fit are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import msgspec
import pytest
from command_line import CommandLine
from postgres_databases import PostgresDatabases, opened
from postgres_server import PostgresServer
from store_rows import own

from atoll.actors.errors import IncompatibleStore, StoreUnavailable
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.postgres_migrate import migrate
from atoll.persistence.postgres_schema import migrations, newest_version
from atoll.persistence.row_codec import encoded
from atoll.persistence.stripes import Stripe
from atoll.persistence.table_rows import shard_place


@pytest.fixture
def server(postgres_databases: PostgresDatabases) -> PostgresServer:
    return postgres_databases.server


@pytest.fixture
def empty(server: PostgresServer) -> Iterator[str]:
    """The name of a database with roles and schema, but no tables."""
    server.create_database("empty")
    yield "empty"
    server.execute("DROP DATABASE empty WITH (FORCE)")


async def test_a_database_without_tables_says_how_to_make_them(server: PostgresServer, empty: str) -> None:
    """J13: refused with what to do, and nothing is made."""
    with pytest.raises(IncompatibleStore, match="atoll store migrate"):
        await opened(server.url(empty))
    with pytest.raises(IncompatibleStore, match="atoll store migrate"):
        await PostgresStore(server.url(empty)).exists()


async def test_several_migrate_at_once(server: PostgresServer, empty: str) -> None:
    """J13: each waits for the one before; the tables are made once, and all are content."""
    applied = await asyncio.gather(*(migrate(server.owner_url(empty)) for _ in range(3)))
    assert sorted(map(len, applied)) == [0, 0, len(migrations())]
    store = await opened(server.url(empty))
    await store.close()


async def test_a_newer_schema_is_refused_by_both(server: PostgresServer, empty: str) -> None:
    """J13: an older code neither opens nor migrates what a newer one made; once it is gone, it does."""
    await migrate(server.owner_url(empty))
    newer = newest_version() + 1
    connection = await asyncpg.connect(server.owner_url(empty))
    await connection.execute("INSERT INTO schema_versions VALUES ($1, 'from the future')", newer)
    for call in (opened(server.url(empty)), migrate(server.owner_url(empty))):
        with pytest.raises(IncompatibleStore, match=rf"schema version {newer}.*upgrade atoll"):
            await call
    await connection.execute("DELETE FROM schema_versions WHERE version > 1")
    with pytest.raises(IncompatibleStore, match=r"schema version 1.*atoll store migrate"):
        await opened(server.url(empty))
    await connection.close()


async def test_a_database_of_schema_1_keeps_all_its_data(server: PostgresServer, empty: str) -> None:
    """J13: rows of shards without a pin, as version 1 wrote them, are read as they were, and can be pinned. A database
    from before there could be several is an app's only one."""
    await migrate(server.owner_url(empty))
    store = await opened(server.url(empty))
    await own(store, await store.register_host("a:1", "node", None), 1, 2)
    before = await store.shards()
    await store.close()
    connection = await asyncpg.connect(server.owner_url(empty))
    for row in before:
        written = {name: value for name, value in msgspec.structs.asdict(row).items() if name != "pin"}
        blob = encoded(written, shard_place(row.shard))
        await connection.execute("UPDATE shards SET row = $2 WHERE shard = $1", row.shard, blob)
    await connection.execute("ALTER TABLE meta DROP COLUMN stripe, DROP COLUMN stripes, DROP COLUMN family")
    await connection.execute("DELETE FROM schema_versions WHERE version > 1")
    await connection.close()
    assert await migrate(server.owner_url(empty)) == ["0002_pins.sql", "0003_stripes.sql"]
    store = await opened(server.url(empty))
    assert store.stripe == Stripe(0, 1)
    assert await store.shards() == before
    assert await store.pin(1, "node")
    assert [row.pin for row in await store.shards()] == [None, "node", None, None]
    await store.close()


async def test_a_migration_that_fails_leaves_nothing(server: PostgresServer, empty: str) -> None:
    """J13: all or nothing, so that it can be run again."""
    connection = await asyncpg.connect(server.owner_url(empty))
    await connection.execute("CREATE TABLE timers (in_the_way integer)")
    with pytest.raises(IncompatibleStore, match=r'"timers" already exists.*nothing was changed'):
        await migrate(server.owner_url(empty))
    assert await connection.fetchval("SELECT to_regclass('meta')") is None
    await connection.execute("DROP TABLE timers")
    await connection.close()
    assert len(await migrate(server.owner_url(empty))) == len(migrations())


async def test_the_runtime_role_changes_rows_and_nothing_else(postgres_url: str) -> None:
    """Least privilege: no table of the store can be made, changed, emptied at once or dropped by whoever runs hosts."""
    connection = await asyncpg.connect(postgres_url)
    for statement in (
        "CREATE TABLE mine (n integer)",
        "CREATE TABLE public.mine (n integer)",
        "DROP TABLE log",
        "TRUNCATE log",
        "ALTER TABLE log ADD COLUMN mine integer",
        "CREATE ROLE me",
        "COPY log TO PROGRAM 'cat'",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_a_role_without_its_rights_is_told_where_they_stand(server: PostgresServer, postgres_url: str) -> None:
    """A role of one's own that was not granted the tables: refused, with the file that grants them."""
    database = postgres_url.rpartition("/")[2]
    connection = await asyncpg.connect(server.admin_url(database))
    await connection.execute("CREATE ROLE stranger LOGIN; ALTER ROLE stranger SET search_path = atoll")
    await connection.execute("GRANT USAGE ON SCHEMA atoll TO stranger")
    try:
        with pytest.raises(IncompatibleStore, match=r"deploy/postgresql/database\.sql"):
            await opened(postgres_url.replace("atoll_runtime", "stranger"))
    finally:
        await connection.execute("DROP OWNED BY stranger; DROP ROLE stranger")
        await connection.close()


async def test_a_server_that_answers_before_the_disk_does_is_refused(postgres_url: str) -> None:
    """J12: what was acknowledged must be on disk, whatever role and URL say."""
    with pytest.raises(IncompatibleStore, match="not durable: synchronous_commit off"):
        await opened(f"{postgres_url}?synchronous_commit=off")


async def test_a_role_without_time_limits_is_warned_of(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The runtime role of roles.sql has them all; another one opens, with a warning that names what it lacks."""
    store = await opened(postgres_url)
    await store.close()
    assert caplog.text == ""
    store = await opened(f"{postgres_url}?idle_in_transaction_session_timeout=0&tcp_user_timeout=0")
    await store.close()
    assert "sets no idle_in_transaction_session_timeout, tcp_user_timeout" in caplog.text
    assert "roles.sql" in caplog.text


@pytest.mark.parametrize("part", ["database", "user", "port"])
async def test_an_url_that_leads_nowhere(postgres_url: str, part: str) -> None:
    """The message says what to look at, and never the password."""
    server, _slash, database = postgres_url.rpartition("/")
    url, told = {
        "database": (f"{server}/nowhere", "check user, password and database"),
        "user": (postgres_url.replace("atoll_runtime@", "nobody:secret@"), "check user, password and database"),
        "port": (f"postgresql://nobody:secret@127.0.0.1:1/{database}", "no connection"),
    }[part]
    with pytest.raises(StoreUnavailable, match=told) as refused:
        await opened(url)
    assert "secret" not in str(refused.value)


def test_the_command_line_migrates(server: PostgresServer, empty: str, tmp_path) -> None:
    """`atoll store migrate`: as the owner, twice; as the runtime role it is refused in one line."""
    cli = CommandLine(tmp_path)
    first, second = (cli.run("store", "migrate", "--store", server.owner_url(empty)) for _ in range(2))
    assert "applied 0001_tables.sql" in first.stdout, first.stderr
    assert second.stdout.endswith("is up to date\n"), second.stderr
    assert "applied" not in second.stdout
    assert "permission denied" in cli.refused("store", "migrate", "--store", server.url(empty))
    assert "only a PostgreSQL store" in cli.refused("store", "migrate", "--store", "sqlite:./data", code=2)
