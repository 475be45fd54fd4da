"""The stores under contract. A test takes `stores` and opens as many handles on one store as it has processes in mind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.persistence.memory import MemoryStore
from atoll.persistence.spi import Store
from atoll.persistence.sqlite import SQLiteStore

APP = "bank"
SHARDS = 4


class Stores:
    """Handles on one store."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._memory = MemoryStore()
        self._handles: list[Store] = []

    def make(self) -> Store:
        """A handle as another process would have it, not opened."""
        handle: Store = self._memory if self.kind == "memory" else SQLiteStore(self._folder)
        self._handles.append(handle)
        return handle

    async def open(self, app: str = APP, shards: int = SHARDS) -> Store:
        handle = self.make()
        await handle.open(app, shards)
        return handle

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()


@pytest.fixture(params=["memory", "sqlite"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores(request.param, tmp_path / "store")
    yield stores
    await stores.close()


@pytest.fixture
async def store(stores: Stores) -> Store:
    return await stores.open()


@pytest.fixture
async def host(store: Store) -> int:
    """The incarnation of a live host."""
    return await store.register_host("127.0.0.1:7700", "node-1", None)
