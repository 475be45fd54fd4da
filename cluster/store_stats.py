"""What a store holds, in figures: read row by row, beside running hosts or without. Then they are of no one instant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import add
from typing import Any

import msgspec
from msgspec.structs import astuple

from ..persistence.records import Commit, DeadLetterRow, EntityRow, MailboxRow, NamedReply, OutboxRow, TimerRow
from ..persistence.spi import Store
from ..persistence.tables import Table, TableRow, payload_bytes
from .store_walk import Tell, pages


class KindFigures(msgspec.Struct):
    """What is stored of one kind's entities. `bytes`: what their authors stored, without keys and checksums."""

    entities: int = 0
    deleted: int = 0
    commits: int = 0
    events: int = 0
    command_ids: int = 0
    mailbox: int = 0
    outbox: int = 0
    """Messages to entities of this kind."""
    timers: int = 0
    dead_letters: int = 0
    state_bytes: int = 0
    event_bytes: int = 0
    other_bytes: int = 0


class Figures(msgspec.Struct):
    app: str
    shards: int
    kinds: dict[str, KindFigures]
    sessions: int
    clients: int
    """Rows of clients, one per shard that a client spoke to, and of streams between shards."""
    client_bytes: int
    log_rows: int
    log_bytes: int
    logs: int
    """That may still matter: not sealed, or named by a shard."""
    uncheckpointed_shards: int
    """Owned or not released, so that a log may hold more of them."""


async def figures(store: Store, app: str, tell: Tell) -> Figures:
    kinds: defaultdict[str, KindFigures] = defaultdict(KindFigures)
    rows = await store.shards()
    clients = client_bytes = 0
    for done, row in enumerate(rows, 1):
        for table in Table:
            async for page in pages(store, table, row.shard):
                if table is Table.CLIENTS:
                    clients += len(page)
                    client_bytes += sum(map(payload_bytes, page))
                else:
                    for item in page:
                        _count(kinds[_kind(item)], item)
        tell(done, len(rows))
    log_rows = log_bytes = 0
    hosts = await store.hosts()
    for host in hosts:
        for log_row in await store.read_log(host.incarnation):
            log_rows += 1
            log_bytes += len(log_row.content)
    return Figures(
        app=app,
        shards=len(rows),
        kinds=dict(sorted(kinds.items())),
        sessions=len(await store.sessions()),
        clients=clients,
        client_bytes=client_bytes,
        log_rows=log_rows,
        log_bytes=log_bytes,
        logs=len(hosts),
        uncheckpointed_shards=sum(bool(row.owners) for row in rows),
    )


def in_all(parts: Sequence[Figures]) -> Figures:
    """Of an app whose shards lie in several databases."""
    kinds: dict[str, KindFigures] = {}
    for part in parts:
        for kind, counted in part.kinds.items():
            before = kinds.get(kind, KindFigures())
            kinds[kind] = KindFigures(*map(add, astuple(before), astuple(counted)))
    sums = {name: sum(getattr(part, name) for part in parts) for name in Figures.__struct_fields__[3:]}
    shards = sum(part.shards for part in parts)
    return Figures(parts[0].app, shards, dict(sorted(kinds.items())), **sums)


def _kind(item: TableRow) -> str:
    if isinstance(item, OutboxRow):
        return item.message.kind
    kind: Any = getattr(item, "kind", "")
    return str(kind)


def _count(found: KindFigures, item: TableRow) -> None:
    match item:
        case EntityRow(deleted=True):
            found.deleted += 1
        case EntityRow():
            found.entities += 1
            found.state_bytes += payload_bytes(item)
        case Commit():
            found.commits += 1
            found.events += len(item.events)
            found.event_bytes += payload_bytes(item)
        case NamedReply():
            found.command_ids += 1
        case MailboxRow():
            found.mailbox += 1
        case OutboxRow():
            found.outbox += 1
        case TimerRow():
            found.timers += 1
        case DeadLetterRow():
            found.dead_letters += 1
    if not isinstance(item, EntityRow | Commit):
        found.other_bytes += payload_bytes(item)
