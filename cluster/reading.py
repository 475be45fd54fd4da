"""Reading a store by hand: what its logs and an entity's journal say, decoded for people. Changes nothing in it.

Works beside running hosts. An entity's journal is its history in the tables and, above p, the records in the logs of
the shard's owners: the logs are read first and the tables last, so that what a checkpoint moves meanwhile is seen in
one of them (twice counts once).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ..actors.calls import Status
from ..actors.errors import AtollError
from ..actors.stored import StoredEvent, StoredState
from ..persistence.open import open_store
from ..persistence.records import Record, decode_batch
from ..persistence.spi import ShardRow, Store
from ..persistence.sqlite import SQLiteStore
from ..sharding.hashing import shard_of


class NothingToRead(AtollError):
    """There is no such store, log or entity; the message says what there is."""


@asynccontextmanager
async def reading(url: str, app: str, shards: int) -> AsyncIterator[StoreReader]:
    """Open an existing store for reading. Raises `NothingToRead` when there is none, `IncompatibleStore` for another
    app's."""
    store = open_store(url)
    if not isinstance(store, SQLiteStore) or not store.folder.is_dir():
        raise NothingToRead(f"there is no store at {url}: name it with --store, or start the app first")
    await store.open(app, shards)
    try:
        yield StoreReader(store, shards)
    finally:
        await store.close()


class StoreReader:
    def __init__(self, store: Store, shards: int) -> None:
        self._store = store
        self._shards = shards

    async def logs(self) -> list[dict[str, Any]]:
        """One entry per incarnation whose log may still matter: its host's state, and which rows stand there."""
        hosts = {host.incarnation: host for host in await self._store.hosts()}
        found = []
        for incarnation in sorted({*hosts, *await self._store.finished_logs()}):
            rows = await self._store.read_log(incarnation)
            host = hosts.get(incarnation)
            found.append(
                {
                    "incarnation": incarnation,
                    "state": str(host.state) if host is not None else "ended",
                    "address": host.address if host is not None else "",
                    "rows": len(rows),
                    "newest": rows[-1].n if rows else 0,
                }
            )
        return found

    async def log(self, incarnation: int, after_n: int = 0) -> list[dict[str, Any]]:
        """Every record above row `after_n`, in order. Raises `CorruptRecord` naming the row that does not prove itself,
        `NothingToRead` for a log that was never made."""
        try:
            rows = await self._store.read_log(incarnation, after_n)
        except ValueError as error:
            raise NothingToRead(str(error)) from None
        return [
            {"row": row.n, **_record(record)}
            for row in rows
            for record in decode_batch(row.content, incarnation, row.n)
        ]

    async def journal(self, kind: str, id: str, after_seq: int = 0) -> list[dict[str, Any]]:
        """The commits of one entity above `after_seq`, oldest first. Of a plain entity only those that are not yet in
        the tables: it keeps its newest state, not its history."""
        shard = shard_of(id, self._shards)
        tail = await self._tail(shard)
        row = (await self._store.shards())[shard]
        commits = await self._store.read_commits(shard, kind, id, after_seq)
        found = {
            commit.seq: {
                "seq": commit.seq,
                "position": commit.position,
                "time": _time(commit.time_ms),
                "events": [_event(event) for event in commit.events],
            }
            for commit in commits
        }
        for record in tail:
            if (record.kind, record.id) == (kind, id) and record.seq > after_seq and record.position > row.position:
                found.setdefault(record.seq, _record(record))
        return [found[seq] for seq in sorted(found)]

    async def state(self, kind: str, id: str) -> dict[str, Any]:
        """The newest state that the tables show. Raises `NothingToRead` for an entity that they do not know."""
        row = await self._store.read_entity(shard_of(id, self._shards), kind, id)
        if row is None:
            raise NothingToRead(f"the tables know no {kind}/{id} (what was committed last may still be in a log)")
        return {
            "seq": row.seq,
            "deleted": row.deleted,
            "state_seq": row.state_seq,
            "state": _state(row.state),
            "time": _time(row.time_ms),
        }

    async def _tail(self, shard: int) -> list[Record]:
        while True:
            before: ShardRow = (await self._store.shards())[shard]
            records = [
                record
                for owner in before.owners
                for row in await self._store.read_log(owner)
                for record in decode_batch(row.content, owner, row.n)
                if record.shard == shard
            ]
            if (await self._store.shards())[shard].owners == before.owners:
                return records


def _record(record: Record) -> dict[str, Any]:
    """What a person wants to know of a record: defaults are left out."""
    told: dict[str, Any] = {"shard": record.shard, "position": record.position, "time": _time(record.time_ms)}
    if record.kind:
        told["entity"] = f"{record.kind}/{record.id}"
    if record.seq:
        told["seq"] = record.seq
    if record.events:
        told["events"] = [_event(event) for event in record.events]
    if record.state is not None:
        told["state"] = _state(record.state)
    if record.deleted:
        told["deleted"] = True
    if record.client:
        told.update(client=record.client, number=record.number, floor=record.floor)
    if record.command_id:
        told["command_id"] = record.command_id
    if record.reply is not None:
        told["reply"] = Status(record.reply.status).name
    if record.riders:
        told["riders"] = [number for number, _ in record.riders]
    return told


def _event(event: StoredEvent) -> dict[str, Any]:
    return {"event": event.name, "version": event.version, "data": _readable(event.data)}


def _state(state: StoredState | None) -> Any:
    return None if state is None else {"version": state.version, "data": _readable(state.data)}


def _readable(data: bytes) -> Any:
    """MessagePack as something that JSON can show."""
    return msgspec.to_builtins(msgspec.msgpack.decode(data), str_keys=True)


def _time(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="milliseconds") if ms else ""
