"""Reading a store by hand: its logs, an entity's journal, dead letters, decoded for people. Changes no data in it.

Works beside running hosts. What an entity did, or a shard has buried, stands in the tables and, above p, in the logs of
the shard's owners: the logs are read first, then p, and the tables last, so that what a checkpoint moves meanwhile is
seen in one of them (twice counts once).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ..actors.calls import Status
from ..actors.errors import AtollError
from ..actors.stored import StoredEvent, StoredState
from ..persistence.open import open_store
from ..persistence.records import STREAMS, DeadLetterRow, Delivery, Record, decode_batch, is_stream
from ..persistence.spi import Store
from ..persistence.stripes import stripe_of
from ..persistence.urls import shown
from ..sharding.hashing import shard_of
from .stores import open_all

LETTERS_PAGE = 50
"""Dead letters that are read at a time: each may carry arguments of the largest size."""


class NothingToRead(AtollError):
    """There is no such store, log, entity or dead letter; the message says what there is."""


@asynccontextmanager
async def reading(urls: Sequence[str], app: str, shards: int) -> AsyncIterator[list[StoreReader]]:
    """Open an app's existing databases, named in their order, for reading; `reader_of` finds an entity's. Raises
    `NothingToRead` when one is not there, `IncompatibleStore` for another app's."""
    async with existing_stores(urls, app, shards) as stores:
        yield [StoreReader(store, shards) for store in stores]


def reader_of(readers: Sequence[StoreReader], id: str, shards: int) -> StoreReader:
    """The one who reads the entities with that ID."""
    return readers[stripe_of(shard_of(id, shards), len(readers))]


@asynccontextmanager
async def existing_stores(urls: Sequence[str], app: str, shards: int) -> AsyncIterator[list[Store]]:
    """An app's databases, open. Raises as `reading` does."""
    stores = [open_store(url) for url in urls]
    for url, store in zip(urls, stores, strict=True):
        if not await store.exists():
            raise NothingToRead(f"there is no store at {shown(url)}: name it with --store, or start the app first")
    await open_all(stores, app, shards, create=False)
    try:
        yield stores
    finally:
        for store in stores:
            await store.close()


class StoreReader:
    """Reads one database."""

    def __init__(self, store: Store, shards: int) -> None:
        """`shards`: of the app."""
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

        def wanted(record: Record) -> bool:
            return (record.kind, record.id) == (kind, id) and record.seq > after_seq

        tail = (await self._tails([shard], wanted))[shard]
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

    async def dead_letters(self, kind: str | None = None, id: str | None = None) -> AsyncIterator[DeadLetterRow]:
        """The dead letters of every entity, of one kind, or of one entity (`kind` and `id`): shard by shard, in each in
        order of number."""
        shards = self._store.stripe.shards(self._shards) if id is None else [shard_of(id, self._shards)]
        newest = await self._letters_in_logs(shards)
        for shard in shards:
            in_log, after, more = newest[shard], 0, True
            while more:
                rows = await self._store.read_dead_letters(shard, after, LETTERS_PAGE)
                more = len(rows) == LETTERS_PAGE
                after = rows[-1].number if rows else after
                due = [number for number in in_log if number <= after or not more]
                page = {row.number: row for row in rows} | {number: in_log.pop(number) for number in due}
                for _, row in sorted(page.items()):
                    if row is not None and kind in (None, row.kind) and id in (None, row.id):
                        yield row

    async def dead_letter(self, kind: str, id: str, number: int) -> dict[str, Any]:
        """All that a dead letter says. Raises `NothingToRead` when the entity has none of that number."""
        shard = shard_of(id, self._shards)
        newest = (await self._letters_in_logs([shard]))[shard]
        in_table = {row.number: row for row in await self._store.read_dead_letters(shard, number - 1, 1)}
        row = newest.get(number, in_table.get(number))
        if row is None or (row.kind, row.id) != (kind, id):
            raise NothingToRead(
                f"{kind}/{id} has no dead letter {number}: `atoll dead-letters list` shows those there are"
            )
        letter = row.letter
        told = {**letter_line(row), "shard": shard}
        if letter.client:
            told["sender"] = _sender(letter.client, letter.number)
        if letter.command_id:
            told["command_id"] = letter.command_id
        if letter.timer:
            told["timer"] = letter.timer
        told["arguments"] = _readable(letter.arguments)
        return told

    async def _letters_in_logs(self, shards: Sequence[int]) -> dict[int, dict[int, DeadLetterRow | None]]:
        """Per shard what is to be laid over the table: number -> letter, None for one that is gone."""

        def wanted(record: Record) -> bool:
            return record.delivery is not None and (record.delivery.dead is not None or record.delivery.letter_gone > 0)

        found: dict[int, dict[int, DeadLetterRow | None]] = {}
        for shard, tail in (await self._tails(shards, wanted)).items():
            letters = found[shard] = {}
            for record in tail:
                delivery = record.delivery
                if delivery is not None and delivery.dead is not None:
                    letters[record.position] = DeadLetterRow(record.position, record.kind, record.id, delivery.dead)
                if delivery is not None and delivery.letter_gone:
                    letters[delivery.letter_gone] = None
        return found

    async def _tails(self, shards: Collection[int], wanted: Callable[[Record], bool]) -> dict[int, list[Record]]:
        """Per shard, in order, the wanted records above p. Shards that change hands meanwhile are read again."""
        tails: dict[int, list[Record]] = {}
        before = {row.shard: row for row in await self._store.shards()}
        while len(tails) < len(shards):
            found: dict[int, list[Record]] = {shard: [] for shard in shards if shard not in tails}
            for owner in sorted({owner for shard in found for owner in before[shard].owners}):
                for row in await self._store.read_log(owner):
                    for record in decode_batch(row.content, owner, row.n):
                        if record.shard in found and wanted(record):
                            found[record.shard].append(record)
            after = {row.shard: row for row in await self._store.shards()}
            for shard, records in found.items():
                if after[shard].owners == before[shard].owners:
                    above = [record for record in records if record.position > after[shard].position]
                    tails[shard] = sorted(above, key=lambda record: record.position)
            before = after
        return tails


def letter_line(row: DeadLetterRow) -> dict[str, Any]:
    """A dead letter without what it carries."""
    letter = row.letter
    return {
        "time": _time(letter.time_ms),
        "kind": row.kind,
        "id": row.id,
        "number": row.number,
        "method": letter.method,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "error": letter.error,
    }


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
        told.update(_sender(record.client, record.number), floor=record.floor)
    if record.command_id:
        told["command_id"] = record.command_id
    if record.reply is not None:
        told["reply"] = Status(record.reply.status).name
    if record.riders:
        told["riders"] = [number for number, _ in record.riders]
    if record.delivery is not None:
        told.update(_delivery(record.delivery))
    return told


def _delivery(delivery: Delivery) -> dict[str, Any]:
    """What a record says of work that goes on without being called; what is carried is left out."""
    told: dict[str, Any] = {}
    accepted, dead = delivery.accepted, delivery.dead
    if accepted is not None:
        told["accepted"] = {"method": accepted.method, **_sender(accepted.client, accepted.number)}
    if delivery.done:
        told["done"] = delivery.done
    if delivery.attempts:
        told["attempts"] = [{"entry": entry, "attempts": attempts} for entry, attempts in delivery.attempts]
    if delivery.outbox:
        told["outbox"] = [f"{message.kind}/{message.id}.{message.method}" for message in delivery.outbox]
    if delivery.delivered:
        told["delivered"] = list(delivery.delivered)
    if delivery.timers:
        told["timers"] = [
            {"timer": timer.name, "due": _time(timer.due_ms), "method": timer.method} for timer in delivery.timers
        ]
    if delivery.timers_gone:
        told["timers_gone"] = list(delivery.timers_gone)
    if dead is not None:
        told["dead"] = {"method": dead.method, "attempts": dead.attempts, "reason": dead.reason, "error": dead.error}
    if delivery.letter_gone:
        told["letter_gone"] = delivery.letter_gone
    return told


def _sender(client: int, number: int) -> dict[str, int]:
    """Whose a command was: a client's, or a message of a shard's entities; of a timer's there is nothing to say."""
    if is_stream(client):
        return {"from_shard": client - STREAMS, "message": number}
    return {"client": client, "number": number} if client else {}


def _event(event: StoredEvent) -> dict[str, Any]:
    return {"event": event.name, "version": event.version, "data": _readable(event.data)}


def _state(state: StoredState | None) -> Any:
    return None if state is None else {"version": state.version, "data": _readable(state.data)}


def _readable(data: bytes) -> Any:
    """MessagePack as something that JSON can show: bytes in base64, as those of extensions, and of what is no
    MessagePack."""
    try:
        return msgspec.to_builtins(msgspec.msgpack.decode(data, ext_hook=_extension), str_keys=True)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return msgspec.to_builtins({"bytes": data})


def _extension(code: int, data: memoryview) -> dict[str, Any]:
    return {"extension": code, "bytes": bytes(data)}


def _time(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="milliseconds") if ms else ""
