"""Ownership and the tables in PostgreSQL.

Every transaction that changes something of a shard locks the shard's row first, in order of shard, and reads it under
that lock (rule 7). Whether a host is LIVE and eligible is read then. A condemnation that falls between that look and
the commit counts as coming after it; that harms nobody, since a claim is only a right to seal, and a condemned host's
log is sealed by whoever comes after. A drain that begins there comes after it, too: what the host was just given is
moved away with the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from ..actors.errors import CorruptRecord
from . import ownership
from .postgres_history import add_history, delete_commits_slice, piece_rows
from .postgres_leases import host, hosts_named
from .postgres_pending import Binding, delete, put, write_pending
from .records import ClientRow, EntityRow, NamedReply
from .rows import covered_seq, entity_after, leaves_state
from .spi import Assignment, HostState, ShardRow, TableWrite
from .table_rows import (
    client_blob,
    client_row,
    entity_blob,
    entity_row,
    named_blob,
    named_row,
    shard_blob,
    shard_place,
    shard_row,
)

if TYPE_CHECKING:
    from .postgres_link import Connection

_LOCK_SHARDS = "SELECT shard, row FROM shards WHERE shard = ANY ($1) ORDER BY shard FOR UPDATE"
_PUT_SHARDS = """
UPDATE shards SET row = new.row
FROM unnest($1::integer[], $2::bytea[]) AS new (shard, row) WHERE shards.shard = new.shard
"""
_PUT_ENTITIES = """
INSERT INTO entities (shard, kind, id, seq, row)
SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[])
ON CONFLICT (shard, kind, id) DO UPDATE SET seq = excluded.seq, row = excluded.row WHERE excluded.seq > entities.seq
"""
_PUT_CLIENTS = """
INSERT INTO clients (shard, client, floor, row)
SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[])
ON CONFLICT (shard, client) DO UPDATE SET floor = excluded.floor, row = excluded.row
WHERE excluded.floor >= clients.floor
"""
_PUT_NAMED = """
INSERT INTO named_replies (shard, kind, id, command_id, time_ms, row)
SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bytea[])
ON CONFLICT (shard, kind, id, command_id) DO NOTHING
"""
_FORGET_CLIENTS = "DELETE FROM clients WHERE shard = $1 AND client = $2"
_FORGET_NAMED = "DELETE FROM named_replies WHERE shard = $1 AND time_ms < $2"
_DELETE_NAMED = "DELETE FROM named_replies WHERE shard = $1 AND kind = $2 AND id = $3 AND command_id = $4"
_ENTITY = "SELECT seq, row FROM entities WHERE shard = $1 AND kind = $2 AND id = $3"
_ENTITIES = """
SELECT e.shard, e.kind, e.id, e.seq, e.row
FROM unnest($1::integer[], $2::bytea[], $3::bytea[]) AS k (shard, kind, id) JOIN entities e USING (shard, kind, id)
"""


async def create_shards(connection: Connection, shards: Iterable[int]) -> None:
    """Inside the transaction that creates the store."""
    await connection.executemany(
        "INSERT INTO shards (shard, row) VALUES ($1, $2)",
        [(shard, shard_blob(ownership.unowned(shard))) for shard in shards],
    )


# ---- ownership: each inside a transaction --------------------------------------------------------------------------


async def decide(
    connection: Connection,
    step: ownership.Step,
    decisions: Sequence[Assignment],
) -> frozenset[int]:
    """`step`: `ownership.assigned` or `ownership.moved`."""
    rows = await _locked(connection, (decision.shard for decision in decisions))
    eligible = await _eligible(connection, [decision.incarnation for decision in decisions])
    changed = ownership.decided(step, rows.__getitem__, decisions, eligible)
    await _put_shards(connection, changed, changed.keys())
    return frozenset(changed)


async def pin(connection: Connection, shard: int, node: str | None) -> bool:
    row = ownership.pinned((await _locked(connection, (shard,)))[shard], node)
    if row is not None:
        await _put_shards(connection, {shard: row}, (shard,))
    return row is not None


async def claim(connection: Connection, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
    rows = await _locked(connection, (shard for shard, _epoch in claims))
    claimant = await host(connection, incarnation)
    if claimant is None or claimant.state is not HostState.LIVE:
        return []
    taken = []
    for shard, epoch in claims:
        row = ownership.claimed(rows[shard], incarnation, epoch)
        if row is not None:
            rows[shard] = row
            taken.append(row)
    await _put_shards(connection, rows, {row.shard for row in taken})
    return taken


async def _eligible(connection: Connection, incarnations: Iterable[int]) -> set[int]:
    return {row.incarnation for row in await hosts_named(connection, set(incarnations)) if ownership.eligible(row)}


async def _locked(connection: Connection, shards: Iterable[int]) -> dict[int, ShardRow]:
    wanted = sorted(set(shards))
    found = await connection.fetch(_LOCK_SHARDS, wanted)
    rows = {shard: shard_row(shard, blob) for shard, blob in found}
    for shard in wanted:
        if shard not in rows:
            raise CorruptRecord(f"{shard_place(shard)}: missing; restore this store from a backup")
    return rows


async def _put_shards(connection: Connection, rows: dict[int, ShardRow], changed: Collection[int]) -> None:
    await put(connection, _PUT_SHARDS, [(shard, shard_blob(rows[shard])) for shard in changed])


# ---- checkpoint ----------------------------------------------------------------------------------------------------


async def checkpoint(connection: Connection, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
    """Inside a transaction."""
    rows = await _locked(connection, (write.shard for write in writes))
    refused: set[int] = set()
    ended: set[int] = set()
    for some in _rounds(writes):
        pieces: list[Binding] = []
        index: list[Binding] = []
        taken = []
        for write in some:
            before = rows[write.shard]
            commits = () if write.end is None else ownership.fresh_commits(before, write.end)
            if not ownership.may_write(before, incarnation, write.epoch):
                refused.add(write.shard)
                continue
            taken.append(write)
            if write.end is not None:
                new_pieces, new_index = piece_rows(write.shard, commits)
                pieces += new_pieces
                index += new_index
                rows[write.shard] = await _ended(connection, before, incarnation, write)
                ended.add(write.shard)
        await _write_rows(connection, taken)
        await add_history(connection, pieces, index)
    await _put_shards(connection, rows, ended)
    return frozenset(refused)


async def load(connection: Connection, writes: Sequence[TableWrite]) -> None:
    """Inside a transaction: rows of an import, of shards that nobody owns."""
    rows = await _locked(connection, (write.shard for write in writes))
    for some in _rounds(writes):
        await _write_rows(connection, some)
        for write in some:
            if write.end is not None:
                before = rows[write.shard]
                await add_history(connection, *piece_rows(write.shard, ownership.fresh_commits(before, write.end)))
                rows[write.shard] = ownership.loaded(before, write.epoch, write.end)
    await _put_shards(connection, rows, rows.keys())


def _rounds(writes: Sequence[TableWrite]) -> list[list[TableWrite]]:
    """The writes in rounds, in each of which a shard stands once: nearly always one round."""
    rounds: list[list[TableWrite]] = []
    count: dict[int, int] = {}
    for write in writes:
        nth = count.get(write.shard, 0)
        count[write.shard] = nth + 1
        if nth == len(rounds):
            rounds.append([])
        rounds[nth].append(write)
    return rounds


async def _ended(connection: Connection, before: ShardRow, incarnation: int, write: TableWrite) -> ShardRow:
    assert write.end is not None
    heir = before.target if write.end.release else None  # only a release must look at the target's row
    eligible = heir is not None and ownership.eligible(await host(connection, heir))
    return ownership.ended(before, incarnation, write.end, target_eligible=eligible)


async def _write_rows(connection: Connection, writes: Sequence[TableWrite]) -> None:
    entities = [(w.shard, row) for w in writes for row in w.entities]
    said = [_entity_binding(shard, row) for shard, row in entities if not leaves_state(row)]
    await put(connection, _PUT_ENTITIES, said)
    await _put_without_state(connection, [(shard, row) for shard, row in entities if leaves_state(row)])
    clients = [(w.shard, row.client, row.floor, client_blob(w.shard, row)) for w in writes for row in w.clients]
    await put(connection, _PUT_CLIENTS, clients)
    await delete(connection, _FORGET_CLIENTS, [(w.shard, client) for w in writes for client in w.forgotten_clients])
    await put(connection, _PUT_NAMED, [_named_binding(w.shard, row) for w in writes for row in w.named])
    forget = [(w.shard, w.forget_named_before_ms) for w in writes if w.forget_named_before_ms]
    await delete(connection, _FORGET_NAMED, forget)
    gone = [(w.shard, *map(str.encode, name)) for w in writes for name in w.named_gone]
    await delete(connection, _DELETE_NAMED, gone)
    await write_pending(connection, writes)


async def _put_without_state(connection: Connection, entities: Sequence[tuple[int, EntityRow]]) -> None:
    """Rows that leave the stored state as it is: read, laid over, written back."""
    if not entities:
        return
    wanted = {_entity_key(shard, row): (shard, row) for shard, row in entities}
    stored = {
        (shard, kind, id): entity_row(shard, kind.decode(), id.decode(), seq, blob)
        for shard, kind, id, seq, blob in await connection.fetch(_ENTITIES, *zip(*sorted(wanted), strict=True))
    }
    after = [(shard, entity_after(stored.get(key), row)) for key, (shard, row) in wanted.items()]
    await put(connection, _PUT_ENTITIES, [_entity_binding(shard, row) for shard, row in after])


def _entity_key(shard: int, row: EntityRow) -> Binding:
    return shard, row.kind.encode(), row.id.encode()


def _entity_binding(shard: int, row: EntityRow) -> Binding:
    return *_entity_key(shard, row), row.seq, entity_blob(shard, row)


def _named_binding(shard: int, row: NamedReply) -> Binding:
    names = row.kind.encode(), row.id.encode(), row.command_id.encode()
    return shard, *names, row.time_ms, named_blob(shard, row)


async def delete_history_slice(connection: Connection, shard: int, kind: str, id: str, through_seq: int) -> bool:
    """Inside a transaction: some of what `Store.delete_history` drops, the oldest first; True when there is more. It
    holds the shard's row, since two entities may share a piece."""
    await _locked(connection, [shard])
    through_seq = min(through_seq, covered_seq(await read_entity(connection, shard, kind, id)))
    return await delete_commits_slice(connection, shard, kind, id, through_seq)


# ---- reading -------------------------------------------------------------------------------------------------------


async def read_shards(connection: Connection) -> list[ShardRow]:
    return [shard_row(*row) for row in await connection.fetch("SELECT shard, row FROM shards ORDER BY shard")]


async def named_owners(connection: Connection) -> set[int]:
    """Incarnations that some shard's `owners` names."""
    return {owner for row in await read_shards(connection) for owner in row.owners}


async def read_entity(connection: Connection, shard: int, kind: str, id: str) -> EntityRow | None:
    row = await connection.fetchrow(_ENTITY, shard, kind.encode(), id.encode())
    return None if row is None else entity_row(shard, kind, id, *row)


async def read_entities(
    connection: Connection, wanted: Sequence[tuple[int, str, str]]
) -> dict[tuple[int, str, str], tuple[int, bytes]]:
    """(shard, kind, ID) -> (seq, its row as it stands there), of those that there are."""
    if len(wanted) == 1:
        ((shard, kind, id),) = wanted
        row = await connection.fetchrow(_ENTITY, shard, kind.encode(), id.encode())
        return {} if row is None else {wanted[0]: (row["seq"], row["row"])}
    bindings = [(shard, kind.encode(), id.encode()) for shard, kind, id in wanted]
    rows = await connection.fetch(_ENTITIES, *zip(*bindings, strict=True))
    return {(shard, kind.decode(), id.decode()): (seq, blob) for shard, kind, id, seq, blob in rows}


async def read_clients(connection: Connection, shard: int) -> list[ClientRow]:
    rows = await connection.fetch("SELECT client, floor, row FROM clients WHERE shard = $1 ORDER BY client", shard)
    return [client_row(shard, *row) for row in rows]


async def read_named(connection: Connection, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
    row = await connection.fetchrow(
        "SELECT time_ms, row FROM named_replies WHERE shard = $1 AND kind = $2 AND id = $3 AND command_id = $4",
        shard,
        kind.encode(),
        id.encode(),
        command_id.encode(),
    )
    return None if row is None else named_row(shard, kind, id, command_id, *row)
