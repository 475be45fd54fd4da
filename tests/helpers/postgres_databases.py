"""Databases with the empty tables of a store, on one server for all tests. They are emptied and used again: to make one
costs a second, since every table and index is a file of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Self

from postgres_server import PostgresServer

from atoll.persistence.postgres import PostgresStore

_TABLES = [
    "meta",
    "hosts",
    "sessions",
    "shards",
    "log",
    "entities",
    "clients",
    "named_replies",
    "history",
    "history_by_entity",
    "mailbox",
    "outbox",
    "timers",
    "dead_letters",
]
_EMPTY = "".join(f"DELETE FROM atoll.{table};" for table in _TABLES) + "UPDATE atoll.counters SET value = 0;"


class PostgresDatabases:
    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._made = 0
        self._free: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def start(cls) -> Iterator[Self]:
        with PostgresServer.start() as server:
            yield cls(server)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        """The name of a database of one's own, migrated, without an app in it."""
        name = self._free.pop() if self._free else self._make()
        yield name
        self.server.execute(_EMPTY, name)
        self._free.append(name)  # not one that could not be emptied

    def _make(self) -> str:
        self._made += 1
        name = f"store_{self._made}"
        self.server.create_store(name)
        return name


async def opened(url: str) -> PostgresStore:
    """A store of a small app, there."""
    store = PostgresStore(url)
    await store.open("bank", 4)
    return store
