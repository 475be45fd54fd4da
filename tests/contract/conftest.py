"""The stores under contract. A test takes `stores` and opens as many handles on one store as it has processes in mind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from pgbouncer import BINARY, Pgbouncer
from postgres_databases import PostgresDatabases

from atoll.persistence.memory import MemoryStore
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.spi import Store
from atoll.persistence.sqlite import SQLiteStore
from atoll.persistence.stripes import ONLY, Stripe

APP = "bank"
SHARDS = 4


class Stores:
    """Handles on one store."""

    def __init__(self, kind: str, make: Callable[[], Store]) -> None:
        self.kind = kind
        self._make = make
        self._handles: list[Store] = []

    def make(self) -> Store:
        """A handle as another process would have it, not opened."""
        handle = self._make()
        self._handles.append(handle)
        return handle

    async def open(self, app: str = APP, shards: int = SHARDS, stripe: Stripe = ONLY) -> Store:
        handle = self.make()
        await handle.open(app, shards, stripe)
        return handle

    async def reopen(self, app: str) -> Store:
        """As a process would that finds it later: all other handles are closed."""
        await self.close()
        return await self.open(app)

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()


@pytest.fixture(scope="session")
def pooler(postgres_databases: PostgresDatabases) -> Iterator[Pgbouncer]:
    if BINARY is None:
        pytest.skip("there is no pgbouncer here: apt-get install pgbouncer")
    with Pgbouncer.start(postgres_databases.server) as pooler:
        yield pooler


@pytest.fixture(params=["memory", "sqlite", "postgresql", pytest.param("pgbouncer", marks=pytest.mark.soak)])
def stores_of(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    match request.param:
        case "memory":
            memory = MemoryStore()
            return Stores("memory", lambda: memory)
        case "sqlite":
            return Stores("sqlite", lambda: SQLiteStore(tmp_path / "store"))
        case kind:
            url: str = request.getfixturevalue("postgres_url")
            if kind == "pgbouncer":
                url = request.getfixturevalue("pooler").url(url.rpartition("/")[2])
            return Stores(kind, lambda: PostgresStore(url))


@pytest.fixture
async def stores(stores_of: Stores) -> AsyncIterator[Stores]:
    yield stores_of
    await stores_of.close()


@pytest.fixture
async def store(stores: Stores) -> Store:
    return await stores.open()


@pytest.fixture
async def host(store: Store) -> int:
    """The incarnation of a live host."""
    return await store.register_host("127.0.0.1:7700", "node-1", None)
