"""An export loaded into a new store: on another folder or machine, or of another kind.

    check the digest  ->  check the head  ->  open as "being loaded"  ->  rows, shard by shard  ->  name it: it is there
       nothing was touched so far             nobody else can open it       interrupted: the same import goes on

What an export holds is not believed: a row that belongs to another shard, or stands above its shard's position, stops
the import, and the store stays nobody's.
"""

from __future__ import annotations

from io import SEEK_END
from typing import IO

import msgspec

from ..actors.errors import IncompatibleStore
from ..actors.settings import Settings
from ..persistence.export_format import DamagedExport, ExportedRow, ExportReader, Head, Session, ShardEnd, check_whole
from ..persistence.records import ClientRow, OutboxRow, TimerRow
from ..persistence.spi import Numbers, Store, loading_name
from ..persistence.tables import TableRow
from ..sharding.hashing import shard_of
from .store_batch import TableBatch
from .store_walk import Tell

NUMBER_MAX = 2**63 - 1


async def import_store(store: Store, file: IO[bytes], *, app: str, settings: Settings, tell: Tell) -> int:
    """Load an export, from a file that can be read twice, into a store that is not there yet and not opened. Return the
    number of rows.

    Raises `DamagedExport` for a file that cannot be believed, `IncompatibleStore` for one of another app or shard count
    and for a store that holds something else.
    """
    size = file.seek(0, SEEK_END)
    file.seek(0)
    check_whole(file, size)
    file.seek(0)
    reader = ExportReader(file)
    head = reader.head
    if head.app != app:
        raise IncompatibleStore(f"this is an export of the app {head.app!r}, not {app!r}: name that app")
    if head.shards != settings.shards:
        raise IncompatibleStore(
            f"this export has {head.shards} shards, not {settings.shards}, and the count is fixed: "
            f"set shards to {head.shards}"
        )
    _check_numbers(head.numbers)
    await store.open(loading_name(app, head.id), head.shards)
    try:
        return await _load(store, reader, head, size, tell, settings)
    except DamagedExport as error:
        raise DamagedExport(f"{error}; the store has a part of it, and no app can use it: remove it") from None
    finally:
        await store.close()


async def _load(store: Store, reader: ExportReader, head: Head, size: int, tell: Tell, settings: Settings) -> int:
    sessions: dict[int, int] = {}
    batch = TableBatch(0)
    rows = 0
    for item in reader:
        match item:
            case Session(client, renewals):
                _check_numbers(item)
                if client > head.numbers.client:  # it would be given out again
                    raise DamagedExport(f"there is a session of client {client}, and {head.numbers.client} is the last")
                sessions[client] = renewals
            case ExportedRow(table, shard, row):
                _check_numbers(row)
                _check_place(row, shard, batch.shard, head)
                batch.add(table, row)
                rows += 1
                if batch.rows >= settings.table_write_rows or batch.bytes >= settings.table_write_bytes:
                    await store.load([batch.taken()])
                    tell(reader.bytes_read, size)
            case ShardEnd(shard, epoch, position):
                _check_numbers(item)
                if shard != batch.shard or batch.highest > position:
                    raise DamagedExport(f"shard {shard} ends at {position}, out of order or before what it holds")
                await store.load([batch.taken(epoch, position)])
                batch = TableBatch(shard + 1)
                tell(reader.bytes_read, size)
    if batch.shard != head.shards or len(sessions) != head.sessions:
        raise DamagedExport(f"there are {batch.shard} shards and {len(sessions)} sessions: some are missing")
    await store.finish_load(head.app, head.numbers, sessions)
    return rows


def _check_numbers(item: Numbers | Session | ShardEnd | TableRow) -> None:
    """A number that no column can hold."""
    numbers = [value for value in msgspec.structs.astuple(item) if isinstance(value, int)]
    if isinstance(item, TimerRow):
        numbers.append(item.timer.due_ms)
    if not all(0 <= number <= NUMBER_MAX for number in numbers):
        raise DamagedExport(f"there is a {type(item).__name__} with a number that cannot be: {numbers}")


def _check_place(row: TableRow, shard: int, expected: int, head: Head) -> None:
    if shard != expected:
        raise DamagedExport(f"a row of shard {shard} stands among those of shard {expected}")
    if not isinstance(row, ClientRow | OutboxRow) and shard_of(row.id, head.shards) != shard:
        raise DamagedExport(f"{row.kind}/{row.id!r} does not belong to shard {shard}")
