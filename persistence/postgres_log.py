"""The logs in PostgreSQL: one table, whose key (incarnation, n) is fence, idempotence and order at once.

What its rows are stands in log_marks.py. An append is one INSERT in one round trip that commits by itself. It inserts
only right above the newest committed row, and only if that is no seal, else nothing. Whoever comes second at an n waits
for the first one's commit and meets a taken key. So nobody overwrites, leaves a gap, or steps over a seal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .host_rows import never_registered
from .log_marks import batches, birth_blob, check_refused, check_seal, seal_blob
from .spi import LogRow

if TYPE_CHECKING:
    from .postgres_link import Connection

READ_ROWS = 16
"""Rows of a tail read at a time: each may be a whole batch of 4 MiB, and one statement has its time-out."""
DELETE_ROWS_MAX = 1000
"""Rows dropped in one transaction."""

_INSERT = """
INSERT INTO log (incarnation, n, seal, content)
SELECT $1, $2::bigint, $4::boolean, $3::bytea
FROM (SELECT n, seal FROM log WHERE incarnation = $1 ORDER BY n DESC LIMIT 1) AS newest
WHERE newest.n = $2 - 1 AND NOT newest.seal
ON CONFLICT DO NOTHING
"""
_INSERTED = "INSERT 0 1"
_NEWEST = """
SELECT n, seal, content, (SELECT content FROM log WHERE incarnation = $1 AND n = $2) AS there
FROM log WHERE incarnation = $1 ORDER BY n DESC LIMIT 1
"""
_PAGE = "SELECT n, seal, content FROM log WHERE incarnation = $1 AND n > $2 ORDER BY n LIMIT $3"
_DELETE = """
DELETE FROM log WHERE incarnation = $1 AND n IN (
    SELECT n FROM log
    WHERE incarnation = $1 AND n BETWEEN 1 AND $2
      AND n < (SELECT n FROM log WHERE incarnation = $1 AND NOT seal ORDER BY n DESC LIMIT 1)
    ORDER BY n LIMIT $3)
"""


async def create(connection: Connection, app: str, incarnation: int) -> None:
    """Inside the transaction that registers the host. A log that is there already is an error of the database."""
    await connection.execute(
        "INSERT INTO log (incarnation, n, seal, content) VALUES ($1, 0, false, $2)",
        incarnation,
        birth_blob(app, incarnation),
    )


async def append(connection: Connection, incarnation: int, n: int, content: bytes) -> None:
    """See `Store.append`."""
    if await connection.execute(_INSERT, incarnation, n, content, False) != _INSERTED:
        newest = await _newest(connection, incarnation, n)
        check_refused(incarnation, n, content, newest=newest["n"], sealed=newest["seal"], stands_there=newest["there"])


async def seal(connection: Connection, incarnation: int) -> int:
    """See `Store.seal`; only the log's part of it. Looks, writes at the next n, and looks again (rule 1): where a row
    slipped in, the seal goes one further."""
    while True:
        newest = await _newest(connection, incarnation)
        n: int = newest["n"]
        if newest["seal"]:
            check_seal(incarnation, n, newest["content"])
            return n
        # Nothing is inserted when an append was faster: then once more. A writer needs an answer between two appends,
        # so it cannot be faster for ever.
        await connection.execute(_INSERT, incarnation, n + 1, seal_blob(incarnation, n + 1), True)


async def _newest(connection: Connection, incarnation: int, n: int = 0) -> Any:
    row = await connection.fetchrow(_NEWEST, incarnation, n)
    if row is None:
        raise never_registered(incarnation)
    return row


async def read(connection: Connection, incarnation: int, after_n: int) -> list[LogRow]:
    """See `Store.read_log`. Inside a snapshot: rows may be dropped meanwhile, and that is no hole."""
    rows: list[tuple[int, bool, bytes]] = []
    after_n = max(after_n, 0)
    while page := await connection.fetch(_PAGE, incarnation, after_n, READ_ROWS):
        rows += [(row["n"], row["seal"], row["content"]) for row in page]
        after_n = page[-1]["n"]
    return batches(incarnation, rows)


async def delete_slice(connection: Connection, incarnation: int, through_n: int) -> bool:
    """Drop some of the rows up to `through_n`, in order; True when there may be more to drop."""
    done = await connection.execute(_DELETE, incarnation, through_n, DELETE_ROWS_MAX)
    return done == f"DELETE {DELETE_ROWS_MAX}"
