"""Entities that are wanted at the same time are read together; each caller hears of its own alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from postgres_databases import PostgresDatabases
from store_rows import KIND, entity, own

from atoll.actors.errors import CorruptRecord, StoreUnavailable
from atoll.persistence import postgres_entities
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.spi import TableWrite

ENTITIES = 500


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """With entities `e0`, `e1` ... in shard 0, each at a seq of its own."""
    store = PostgresStore(postgres_url)
    await store.open("bank", 4)
    host = await store.register_host("a:1", "n", None)
    epoch = (await own(store, host, 0))[0]
    rows = tuple(entity(f"e{n}", n + 1) for n in range(ENTITIES))
    assert not await store.checkpoint(host, [TableWrite(0, epoch, entities=rows)])
    yield store
    await store.close()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entities each statement asked for."""
    sizes: list[int] = []
    read_entities = postgres_entities.read_entities

    async def counted(connection: Any, wanted: Sequence[tuple[int, str, str]]) -> Any:
        sizes.append(len(wanted))
        return await read_entities(connection, wanted)

    monkeypatch.setattr(postgres_entities, "read_entities", counted)
    return sizes


async def seq(store: PostgresStore, id: str) -> int:
    row = await store.read_entity(0, KIND, id)
    return 0 if row is None else row.seq


async def test_a_storm_of_reads_is_a_few_statements(store: PostgresStore, statements: list[int]) -> None:
    """S18: each caller gets its own row, in far fewer round trips than there are callers; a lone one waits for nobody."""
    found = await asyncio.gather(*(seq(store, f"e{n}") for n in range(ENTITIES + 50)))
    assert found == [n + 1 for n in range(ENTITIES)] + [0] * 50
    assert max(statements) <= postgres_entities.ENTITIES_MAX
    assert len(statements) <= 20
    statements.clear()
    assert await seq(store, "e7") == 8
    assert statements == [1]


async def test_two_who_want_the_same_entity_at_once_both_get_it(store: PostgresStore) -> None:
    """S18: also a row that is not there."""
    assert await asyncio.gather(*(seq(store, id) for id in ("e1", "e2", "e1", "nobody", "nobody"))) == [2, 3, 2, 0, 0]


async def test_a_damaged_row_is_an_error_of_those_alone_who_want_it(
    store: PostgresStore, postgres_databases: PostgresDatabases, postgres_url: str
) -> None:
    """J14: the others in the same statement get theirs."""
    connection = await asyncpg.connect(postgres_databases.server.admin_url(postgres_url.rpartition("/")[2]))
    await connection.execute("UPDATE atoll.entities SET seq = 77 WHERE id = $1", b"e1")
    await connection.close()
    found = await asyncio.gather(*(seq(store, f"e{n}") for n in range(4)), return_exceptions=True)
    assert isinstance(found[1], CorruptRecord)
    assert found[:1] + found[2:] == [1, 3, 4]


async def test_a_reader_that_is_cancelled_keeps_nobody_waiting(store: PostgresStore) -> None:
    """S18: whoever it read for repeats; whoever still waits is read by the next one."""
    readers = [asyncio.ensure_future(seq(store, f"e{n}")) for n in range(ENTITIES)]
    await asyncio.sleep(0)  # the first ones have begun
    for reader in readers[:3]:
        reader.cancel()
    async with asyncio.timeout(30):
        found = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in found[:3])
    for n, result in enumerate(found[3:], 3):
        assert result == n + 1 or isinstance(result, StoreUnavailable), (n, result)
    assert found[-1] == ENTITIES


async def test_a_storm_of_reads_from_a_server_that_is_away_is_refused_and_succeeds_later(
    store: PostgresStore, postgres_databases: PostgresDatabases
) -> None:
    """R01: everyone is told, and nobody waits for ever; when it is back the same calls succeed."""
    postgres_databases.server.kill()
    async with asyncio.timeout(60):
        found = await asyncio.gather(*(seq(store, f"e{n}") for n in range(ENTITIES)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in found), found
    await asyncio.to_thread(postgres_databases.server.restart)
    assert await asyncio.gather(*(seq(store, f"e{n}") for n in range(ENTITIES))) == [n + 1 for n in range(ENTITIES)]
