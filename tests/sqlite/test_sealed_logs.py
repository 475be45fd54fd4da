"""A sealed log that several successors let go of at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import apsw

from atoll.persistence.process import this_process
from atoll.persistence.sqlite import SQLiteStore

Open = Callable[[], Awaitable[SQLiteStore]]


async def test_a_successor_that_reads_a_sealed_log_does_not_disturb_the_one_that_empties_it(
    folder: Path, open_store: Open
) -> None:
    """J16: the rows go, and nobody hears of the lock that the file could not be shrunk under."""
    old, successor = await open_store(), await open_store()
    host = await old.register_host("a:1", "node", this_process())
    for n in range(1, 21):
        await old.append(host, n, b"x" * 10_000)
    await old.close()
    await successor.seal(host)

    other = apsw.Connection(str(folder / "logs" / f"{host}.db"))
    other.execute("BEGIN")
    assert (
        other.execute("SELECT count(*) FROM log WHERE n > 0").get == 21
    )  # twenty rows and the seal, and goes on reading
    await successor.delete_log_rows(host, 20)
    assert [row.n for row in await successor.read_log(host)] == [20]
    other.execute("COMMIT")
    other.close()
