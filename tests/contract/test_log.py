"""The log: its key is fence, idempotence and order at once, and the seal is for ever."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from store_rows import KIND, batch, entity

from atoll.actors.errors import CorruptRecord, Fenced
from atoll.persistence.records import Record, decode_batch
from atoll.persistence.spi import LogRow, Store

if TYPE_CHECKING:
    from conftest import Stores


async def test_rows_are_read_back_in_order(store: Store, host: int) -> None:
    """J01: exactly what was appended, from any n on."""
    for n in range(1, 6):
        await store.append(host, n, batch(host, n))
    assert await store.read_log(host) == [LogRow(n, batch(host, n)) for n in range(1, 6)]
    assert [row.n for row in await store.read_log(host, 3)] == [4, 5]
    assert await store.read_log(host, 5) == []
    assert await store.read_log(host, 99) == []


async def test_each_incarnation_has_a_log_of_its_own(store: Store, host: int) -> None:
    """The same n in another log is another row; a row read as another log's is corrupt (J14)."""
    other = await store.register_host("b:1", "n", None)
    await store.append(host, 1, batch(host, 1))
    await store.append(other, 1, batch(other, 1))
    (row,) = await store.read_log(other)
    assert decode_batch(row.content, other, 1)
    with pytest.raises(CorruptRecord, match=f"log {host}, row 1"):
        decode_batch(row.content, host, 1)


async def test_a_repeated_append_is_one_row(store: Store, host: int) -> None:
    """J03, PR03: the same (incarnation, n) with the same content is success, however often, also below newer rows."""
    for n in (1, 2, 3):
        await store.append(host, n, batch(host, n))
    for n in (3, 1, 2, 3):
        await store.append(host, n, batch(host, n))
    assert [row.n for row in await store.read_log(host)] == [1, 2, 3]


async def test_another_content_at_a_taken_n_is_fenced_and_changes_nothing(store: Store, host: int) -> None:
    """J03, PR03: the content of an n never changes; two writers on one log cannot mix their rows."""
    for n in (1, 2):
        await store.append(host, n, batch(host, n))
    before = await store.read_log(host)
    for n in (1, 2):
        with pytest.raises(Fenced):
            await store.append(host, n, b"something else")
    assert await store.read_log(host) == before
    await store.append(host, 3, b"and it goes on")


async def test_a_gap_is_a_mistake_of_the_writer(store: Store, host: int) -> None:
    """A row that leaves a gap could step over a seal: it is refused before anything is written."""
    await store.append(host, 1, b"one")
    with pytest.raises(ValueError, match="gap"):
        await store.append(host, 3, b"three")
    assert [row.n for row in await store.read_log(host)] == [1]


async def test_there_is_no_log_without_a_host(store: Store) -> None:
    """PR02: nothing but a registration makes a log."""
    for call in (store.append(5, 1, b""), store.read_log(5), store.seal(5), store.delete_log_rows(5, 1)):
        with pytest.raises(ValueError, match="ever registered"):
            await call


# ---- the seal


async def test_a_sealed_log_takes_nothing_any_more(stores: Stores) -> None:
    """J06, PR01, PR02: no n, no content, not even a repeat of the last row; for ever, on every handle."""
    old, successor = await stores.open(), await stores.open()
    host = await old.register_host("a:1", "n", None)
    await old.append(host, 1, b"one")
    await old.append(host, 2, b"two")
    assert await successor.seal(host) == 3
    for store in (old, successor, await stores.open()):
        for n, content in ((3, b"three"), (4, b"four"), (2, b"two"), (2, b"2"), (99, b"")):
            with pytest.raises(Fenced):
                await store.append(host, n, content)
    assert [row.content for row in await successor.read_log(host)] == [b"one", b"two"], "the seal is no row to read"


async def test_sealing_again_answers_the_same(stores: Stores) -> None:
    """J06: a successor that does not know whether its seal took seals again; so does a second one."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    assert await store.seal(host) == 1, "an empty log is sealed at 1"
    assert await store.seal(host) == 1
    assert await (await stores.open()).seal(host) == 1
    assert await store.read_log(host) == []


async def test_two_successors_seal_at_once(stores: Stores) -> None:
    """J06, PR01: one seal, both get its n; appends that race with them are below it or fenced."""
    luck = random.Random(7)
    fenced_at = set()
    for _ in range(20):
        old, a, b = [await stores.open() for _ in range(3)]
        host = await old.register_host("a:1", "n", None)

        async def write(store: Store = old, host: int = host) -> int:
            for n in range(1, 40):
                try:
                    await store.append(host, n, b"row %d" % n)
                except Fenced:
                    return n
                await asyncio.sleep(0)
            return 40

        writing = asyncio.create_task(write())
        for _ in range(luck.randrange(30)):
            await asyncio.sleep(0)
        first, second = await asyncio.gather(a.seal(host), b.seal(host))
        stopped_at = await writing
        assert first == second == stopped_at
        rows = await a.read_log(host)
        assert [(row.n, row.content) for row in rows] == [(n, b"row %d" % n) for n in range(1, stopped_at)]
        fenced_at.add(stopped_at)
        await stores.close()
    assert min(fenced_at) < 40, "no seal met a writer"


# ---- letting go of rows


async def test_dropped_rows_are_gone_and_the_others_stay(store: Store, host: int) -> None:
    """J16, PR04: what every shard is past is dropped, and only that; dropping again is nothing."""
    for n in range(1, 6):
        await store.append(host, n, batch(host, n))
    await store.delete_log_rows(host, 2)
    await store.delete_log_rows(host, 2)
    await store.delete_log_rows(host, 0)
    assert [row.n for row in await store.read_log(host)] == [3, 4, 5]
    await store.append(host, 6, batch(host, 6))
    assert [row.n for row in await store.read_log(host, 4)] == [5, 6]


async def test_the_newest_row_is_never_dropped(store: Store, host: int) -> None:
    """J16, PR02: the log goes on from its newest n; a late repeat of a dropped row is fenced and writes nothing."""
    for n in range(1, 4):
        await store.append(host, n, batch(host, n))
    await store.delete_log_rows(host, 99)
    assert [row.n for row in await store.read_log(host)] == [3]
    for n in (1, 2):
        with pytest.raises(Fenced):
            await store.append(host, n, batch(host, n))
    with pytest.raises(ValueError, match="gap"):
        await store.append(host, 5, b"five")
    await store.append(host, 3, batch(host, 3))
    await store.append(host, 4, batch(host, 4))
    assert [row.n for row in await store.read_log(host)] == [3, 4]


async def test_the_seal_outlives_the_content(stores: Stores) -> None:
    """J16, PR02: with everything dropped that may be, the seal is there, the newest row too, and a zombie is fenced."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    for n in range(1, 4):
        await store.append(host, n, batch(host, n))
    assert await store.seal(host) == 4
    successor = await stores.open()
    await successor.delete_log_rows(host, 99)
    assert [row.n for row in await successor.read_log(host)] == [3]
    assert await successor.seal(host) == 4
    for n in range(1, 7):
        with pytest.raises(Fenced):
            await store.append(host, n, batch(host, n))


async def test_thousands_of_rows_are_dropped_while_appends_go_on(store: Store, host: int) -> None:
    """PR04: dropping is background work of the living log; it neither loses nor brings back a row."""
    for n in range(1, 1301):
        await store.append(host, n, b"row %d" % n)
    dropping = asyncio.create_task(store.delete_log_rows(host, 1250))
    n = 1300
    while not dropping.done():
        n += 1
        await store.append(host, n, b"row %d" % n)
        await asyncio.sleep(0)
    await dropping
    assert [(row.n, row.content) for row in await store.read_log(host)] == [
        (k, b"row %d" % k) for k in range(1251, n + 1)
    ]


# ---- payloads


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 5 << 20])
async def test_contents_of_any_size(stores: Stores, size: int) -> None:
    """J11: empty, one byte, 1 MiB, and a whole batch above its cap come back as they went in, also after a reopen."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    content = random.Random(size).randbytes(size)
    await store.append(host, 1, content)
    await store.append(host, 1, content)
    await store.close()
    (row,) = await (await stores.open()).read_log(host)
    assert row.content == content


async def test_a_batch_of_extreme_records_survives(store: Store, host: int) -> None:
    """J11: an ID of 255 bytes outside ASCII and a state of 1 MiB, through the log's own encoding."""
    id = "ü" * 127 + "x"
    state = entity(id, 1, b"\x00\xff" * (1 << 19)).state
    record = Record(shard=3, position=1, kind=KIND, id=id, seq=1, state=state)
    await store.append(host, 1, batch(host, 1, record))
    (row,) = await store.read_log(host)
    assert decode_batch(row.content, host, 1) == [record]
