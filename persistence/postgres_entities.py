"""Entities that are wanted at the same time, read in one statement: ten thousand that come into memory are a few
hundred round trips.

    wanted --> waiting --(one of two turns is free)--> one statement for all that wait --> each hears of its own row

Nobody waits for others to come: a lone read goes at once. Who reads for others and is cancelled leaves them with an
unknown outcome, which for a read means: once more.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from ..actors.errors import CorruptRecord, StoreUnavailable
from .postgres_link import Lane, Link, Still
from .postgres_tables import read_entities
from .table_rows import entity_row

if TYPE_CHECKING:
    from .records import EntityRow

STATEMENTS = 2
"""At the same time: the rest of the lane is for others, who wait for nothing as long as a storm."""
ENTITIES_MAX = 64
"""In one statement: each may have a state of the largest size."""

Wanted = tuple[int, str, str]
"""(shard, kind, ID)"""


class EntityReads:
    """Of one event loop."""

    def __init__(self, link: Link | Still) -> None:
        self._link = link
        self._turns = asyncio.Semaphore(STATEMENTS)
        self._waiting: dict[asyncio.Future[EntityRow | None], Wanted] = {}

    async def read(self, wanted: Wanted) -> EntityRow | None:
        """See `Store.read_entity`."""
        row: asyncio.Future[EntityRow | None] = asyncio.get_running_loop().create_future()
        self._waiting[row] = wanted
        try:
            async with self._turns:
                while row in self._waiting:  # else somebody reads it, or has read it already
                    await self._read_those_who_wait()
            return await row
        finally:
            self._waiting.pop(row, None)
            row.cancel()  # nobody wants it any more; nothing changes if it came

    async def _read_those_who_wait(self) -> None:
        batch = dict(islice(self._waiting.items(), ENTITIES_MAX))
        for row in batch:
            del self._waiting[row]
        try:
            async with self._link.lent(Lane.READ) as connection:
                found = await read_entities(connection, sorted(set(batch.values())))
        except Exception as error:  # noqa: BLE001 - everyone gets it, whoever reads among them
            _fail(batch, error)
        except BaseException:
            _fail(batch, StoreUnavailable("whoever read this together with others was cancelled: repeat the same call"))
            raise
        else:
            for row, wanted in batch.items():
                _settle(row, wanted, found.get(wanted))


def _fail(batch: dict[asyncio.Future[EntityRow | None], Wanted], error: Exception) -> None:
    for row in batch:
        if not row.done():
            row.set_exception(error)


def _settle(row: asyncio.Future[EntityRow | None], wanted: Wanted, stored: tuple[int, bytes] | None) -> None:
    """A damaged row is an error of those who want it, and of nobody else."""
    if row.done():
        return
    try:
        row.set_result(None if stored is None else entity_row(*wanted, *stored))
    except CorruptRecord as error:
        row.set_exception(error)
