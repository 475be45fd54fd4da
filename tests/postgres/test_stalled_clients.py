"""A client that stops in the middle of a transaction keeps its locks only until somebody needs them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from atoll.actors.errors import StoreUnavailable
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.spi import Assignment

FREED_S_MAX = 20.0
"""One wait for the lock (2 s), the end of the session that held it, and the call again: on a busy machine. Without the
end of the session it is held for good."""


class RawClient:
    """Speaks PostgreSQL's protocol by hand, to stop where a library never would."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        assert parts.username
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        told = b"user\0" + parts.username.encode() + b"\0database\0" + parts.path[1:].encode() + b"\0\0"
        self._socket.sendall(struct.pack("!ii", 8 + len(told), 3 << 16) + told)
        self._until_ready()

    def run(self, sql: str) -> None:
        self._send(b"Q", sql.encode() + b"\0")
        self._until_ready()

    def begin_statement(self, sql: str) -> None:
        """Its first message whole, the second one cut: the server waits for the rest, and calls the session active."""
        self._send(b"P", b"\0" + sql.encode() + b"\0" + struct.pack("!h", 0))
        self._socket.sendall(b"B" + struct.pack("!i", 1000) + b"\0")

    def close(self) -> None:
        self._socket.close()

    def _send(self, kind: bytes, body: bytes) -> None:
        self._socket.sendall(kind + struct.pack("!i", 4 + len(body)) + body)

    def _until_ready(self) -> None:
        kind = b""
        while kind != b"Z":
            kind, size = struct.unpack("!ci", self._exactly(5))
            body = self._exactly(size - 4)
            assert kind != b"E", body

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            some = self._socket.recv(size - len(found))
            assert some, "the server hung up"
            found += some
        return found


@pytest.fixture
def stalled(postgres_url: str) -> Iterator[RawClient]:
    client = RawClient(postgres_url)
    yield client
    client.close()


@pytest.mark.parametrize("where", ["between two statements", "within a message"])
async def test_a_stalled_client_blocks_no_takeover(postgres_url: str, stalled: RawClient, where: str) -> None:
    """PR18: who is stopped with a lock in its hand loses its session to the first who waits for it."""
    store = PostgresStore(postgres_url)
    await store.open("bank", 4)
    host = await store.register_host("a:1", "n", None)
    stalled.run("BEGIN")
    stalled.run("SELECT row FROM shards FOR UPDATE")
    if where == "within a message":
        stalled.begin_statement("UPDATE shards SET row = ''")
    began = time.monotonic()
    refused = 0
    while True:
        try:
            changed = await store.assign([Assignment(0, 0, host)])
            break
        except StoreUnavailable:
            refused += 1
    assert changed == {0}
    assert refused >= 1, "the lock was never held"
    assert time.monotonic() - began < FREED_S_MAX
    await store.close()


async def test_a_client_that_only_takes_its_time_keeps_its_session(postgres_url: str) -> None:
    """A session that is idle without a transaction holds nothing, and is left alone when others are ended."""
    store = PostgresStore(postgres_url)
    await store.open("bank", 4)
    host = await store.register_host("a:1", "n", None)
    idle, holder = await asyncpg.connect(postgres_url), RawClient(postgres_url)
    holder.run("BEGIN")
    holder.run("SELECT row FROM shards FOR UPDATE")
    with pytest.raises(StoreUnavailable, match="lock"):
        await store.assign([Assignment(0, 0, host)])
    assert await store.assign([Assignment(0, 0, host)]) == {0}
    assert await idle.fetchval("SELECT 1") == 1
    holder.close()
    await idle.close()
    await store.close()
