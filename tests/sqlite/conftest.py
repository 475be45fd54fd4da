"""An SQLite store in a folder of its own, and further handles on it as other processes would have them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from store_process import APP, SHARDS

from atoll.persistence.sqlite import SQLiteStore

Open = Callable[[], Awaitable[SQLiteStore]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def open_store(folder: Path) -> AsyncIterator[Open]:
    """Open one more handle; all are closed in the end."""
    opened: list[SQLiteStore] = []

    async def open_one() -> SQLiteStore:
        store = SQLiteStore(folder)
        await store.open(APP, SHARDS)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()
