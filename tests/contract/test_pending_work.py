"""Pending work: mailbox entries, messages, timers and dead letters stand in the tables for as long as they are pending."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from store_rows import KIND, letter, mail, message, own, row_of, timer

from atoll.persistence.pending import BEFORE_ALL_TIMERS
from atoll.persistence.records import STREAMS, ClientRow, OutboxRow, TimerRow, outbox_number
from atoll.persistence.spi import CheckpointEnd, PendingMailbox, PendingWork, Store, TableWrite

if TYPE_CHECKING:
    from conftest import Stores

FOR_EVER = 1 << 60
EXTREME_IDS = ["x", "\U0001f40b" * 63 + "abc", "a\x00b", "a/b'\"%_\\", "é", "e\u0301"]


@pytest.fixture
async def epochs(store: Store, host: int) -> dict[int, int]:
    return await own(store, host)


async def all_timers(store: Store, shard: int = 0) -> list[TimerRow]:
    return await store.read_timers(shard, BEFORE_ALL_TIMERS, FOR_EVER, 1000)


async def outbox(store: Store, shard: int = 0) -> list[OutboxRow]:
    return list((await store.read_pending([shard]))[0].outbox)


async def test_pending_work_survives_and_comes_back_in_order(stores: Stores) -> None:
    """J15: after a reopen mailbox entries come back per entity in the order in which they were accepted, messages in the
    order in which they were staged, timers as they are due, dead letters by number; each in its own shard."""
    store = await stores.open()
    host = await store.register_host("a:1", "n", None)
    epochs = await own(store, host)
    write = TableWrite(
        1,
        epochs[1],
        mailbox=tuple(mail(id, entry) for entry in (300, 7, 70_000) for id in "ba"),
        outbox=tuple(message(outbox_number(position, index)) for position in (300, 2, 70_000) for index in (1, 0)),
        timers=tuple(timer(id, f"t{due}", due) for due in (300, 7, 70_000) for id in "ba"),
        dead_letters=tuple(map(letter, (300, 7, 70_000))),
    )
    assert await store.checkpoint(host, [write]) == frozenset()
    await store.close()
    store = await stores.open()
    for id in "ab":
        assert await store.read_mailbox(1, KIND, id) == [mail(id, entry) for entry in (7, 300, 70_000)]
    assert await all_timers(store, 1) == [timer(id, f"t{due}", due) for due in (7, 300, 70_000) for id in "ab"]
    assert await store.read_dead_letters(1) == [letter(number) for number in (7, 300, 70_000)]
    size = sum(len(mail("a", entry).accepted.arguments) for entry in (7, 300, 70_000))
    work = PendingWork(
        1,
        (PendingMailbox(KIND, "a", 3, size), PendingMailbox(KIND, "b", 3, size)),
        tuple(message(outbox_number(position, index)) for position in (2, 300, 70_000) for index in (0, 1)),
        3,
    )
    nothing = PendingWork(0, (), (), 0)
    assert await store.read_pending([1, 0]) == [work, nothing]
    assert await store.read_mailbox(0, KIND, "a") == []
    assert await store.read_mailbox(1, "Cart", "a") == []
    assert await all_timers(store, 0) == []
    assert await store.read_dead_letters(0) == []


@pytest.mark.parametrize("id", EXTREME_IDS)
async def test_extreme_payloads_ids_and_names(store: Store, host: int, epochs: dict[int, int], id: str) -> None:
    """J11, J15: arguments of 0 bytes to 1 MiB, under IDs and timer names of up to 255 bytes, NUL and quotes among them,
    at the highest numbers; no two are one."""
    write = TableWrite(
        0,
        epochs[0],
        clients=(ClientRow(STREAMS + 255, 1 << 62, ()),),
        mailbox=(mail(id, 1, b""), mail(id, 1 << 46, b"x" * (1 << 20)), mail(id + "!", 1)),
        outbox=(message(outbox_number(1 << 46, 65_534), id),),
        timers=(timer(id, id, 0), timer(id, id + "!", 0), timer(id + "!", id, FOR_EVER)),
        dead_letters=(letter(1 << 46, id),),
    )
    await store.checkpoint(host, [write])
    assert await store.read_mailbox(0, KIND, id) == [mail(id, 1, b""), mail(id, 1 << 46, b"x" * (1 << 20))]
    assert await store.read_mailbox(0, KIND, id[:-1]) == []
    assert await all_timers(store) == list(write.timers)
    assert await store.read_dead_letters(0) == list(write.dead_letters)
    assert await outbox(store) == list(write.outbox)
    assert await store.read_clients(0) == list(write.clients)


async def test_pages_of_a_mailbox(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15: from any entry on, with any limit, in order and without a hole."""
    entries = [1, 2, 5, 9, 10, 300]
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox=tuple(mail("a", entry) for entry in entries))])
    for after in range(12):
        for limit in (-1, 0, 1, 3, 99, None):
            found = await store.read_mailbox(0, KIND, "a", after, limit)
            expected = [entry for entry in entries if entry > after]
            assert [row.entry for row in found] == (expected if limit is None else expected[: max(limit, 0)])


async def test_pages_of_timers(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15: behind any place, up to any time, with any limit, in the order (due, kind, ID, name)."""
    rows = [timer(id, name, due) for id in ("a", "é", "b") for name, due in (("x", 5), ("w", 7), ("y", 5))]
    await store.checkpoint(host, [TableWrite(0, epochs[0], timers=tuple(rows))])
    places = sorted((row.timer.due_ms, row.kind, row.id, row.timer.name) for row in rows)
    for after in (BEFORE_ALL_TIMERS, (5, "", "", ""), *places, (6, "", "", "")):
        for through_ms in (4, 5, 6, 7):
            for limit in (0, 1, 4, 99):
                found = await store.read_timers(0, after, through_ms, limit)
                assert [(row.timer.due_ms, row.kind, row.id, row.timer.name) for row in found] == [
                    place for place in places if after < place and place[0] <= through_ms
                ][:limit]


async def test_pages_of_dead_letters(store: Store, host: int, epochs: dict[int, int]) -> None:
    numbers = [3, 4, 90]
    await store.checkpoint(host, [TableWrite(0, epochs[0], dead_letters=tuple(map(letter, numbers)))])
    for after in (0, 2, 3, 89, 90):
        for limit in (0, 1, 2, None):
            found = [row.number for row in await store.read_dead_letters(0, after, limit)]
            expected = [number for number in numbers if number > after]
            assert found == (expected if limit is None else expected[:limit])


async def test_what_is_done_goes_and_the_rest_stays(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15: by entity and number, of this shard alone; what has no row is no error, and a repeat changes nothing."""
    everything = [
        TableWrite(
            shard,
            epochs[shard],
            mailbox=tuple(mail(id, entry) for id in "ab" for entry in (1, 2, 3)),
            outbox=tuple(map(message, (10, 11, 12))),
            timers=tuple(timer(id, name, 5) for id in "ab" for name in "xyz"),
            dead_letters=tuple(map(letter, (1, 2, 3))),
        )
        for shard in (0, 1)
    ]
    await store.checkpoint(host, everything)
    over = TableWrite(
        0,
        epochs[0],
        mailbox_done=((KIND, "a", 2), (KIND, "b", 1), (KIND, "c", 1), (KIND, "a", 99)),
        outbox_done=(11, 99),
        timers_gone=((KIND, "a", "y"), (KIND, "c", "y")),
        timers_cleared=((KIND, "b"), (KIND, "d")),
        letters_gone=(2, 99),
    )
    for _ in range(2):
        assert await store.checkpoint(host, [over]) == frozenset()
        assert await store.read_mailbox(0, KIND, "a") == [mail("a", 1), mail("a", 3)]
        assert await store.read_mailbox(0, KIND, "b") == [mail("b", 2), mail("b", 3)]
        assert await outbox(store) == [message(10), message(12)]
        assert await all_timers(store) == [timer("a", "x", 5), timer("a", "z", 5)]
        assert await store.read_dead_letters(0) == [letter(1), letter(3)]
    assert await store.read_mailbox(1, KIND, "a") == [mail("a", entry) for entry in (1, 2, 3)]
    assert await outbox(store, 1) == [message(number) for number in (10, 11, 12)]
    assert len(await all_timers(store, 1)) == 6
    assert len(await store.read_dead_letters(1)) == 3


async def test_everything_done_is_an_empty_shard(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15: an entity whose entries are all done is not named any more."""
    await store.checkpoint(
        host, [TableWrite(0, epochs[0], mailbox=(mail("a", 1),), outbox=(message(1),), dead_letters=(letter(1),))]
    )
    await store.checkpoint(
        host, [TableWrite(0, epochs[0], mailbox_done=((KIND, "a", 1),), outbox_done=(1,), letters_gone=(1,))]
    )
    assert await store.read_pending([0]) == [PendingWork(0, (), (), 0)]


async def test_attempts_change_an_entry_that_is_there(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15: nothing but its attempts changes, and an entry that is done is not brought back."""
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox=(mail("a", 3), mail("a", 4)))])
    for attempts in (1, 2):
        counted = ((KIND, "a", 3, attempts), (KIND, "a", 2, 7), (KIND, "b", 3, 7))
        await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox_attempts=counted)])
        assert await store.read_mailbox(0, KIND, "a") == [mail("a", 3, attempts=attempts), mail("a", 4)]
    assert await store.read_mailbox(0, KIND, "b") == []
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox_done=((KIND, "a", 3),))])
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox_attempts=((KIND, "a", 3, 9),))])
    assert await store.read_mailbox(0, KIND, "a") == [mail("a", 4)]


async def test_a_row_replaces_the_one_that_stands_there(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J04, J15: a name that is scheduled anew has one timer, at its new time; an entry written again has its new attempts."""
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox=(mail("a", 3),), timers=(timer("a", "x", 5),))])
    again = mail("a", 3, attempts=2)
    for due in (9, 2):
        await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox=(again,), timers=(timer("a", "x", due),))])
        assert await all_timers(store) == [timer("a", "x", due)]
    assert await store.read_timers(0, BEFORE_ALL_TIMERS, 4, 9) == [timer("a", "x", 2)]
    assert await store.read_timers(0, (4, "", "", ""), FOR_EVER, 9) == []
    assert await store.read_mailbox(0, KIND, "a") == [again]


async def test_timers_are_cleared_then_cancelled_then_set(store: Store, host: int, epochs: dict[int, int]) -> None:
    """M20, J15: within one transaction, so that a deleted entity may schedule anew."""
    await store.checkpoint(host, [TableWrite(0, epochs[0], timers=tuple(timer("a", name, 5) for name in "xyz"))])
    await store.checkpoint(
        host,
        [
            TableWrite(
                0,
                epochs[0],
                timers=(timer("a", "y", 7),),
                timers_gone=((KIND, "a", "y"), (KIND, "a", "x")),
                timers_cleared=((KIND, "a"),),
            )
        ],
    )
    assert await all_timers(store) == [timer("a", "y", 7)]


async def test_a_release_leaves_pending_work_to_the_next_owner(store: Store, host: int, epochs: dict[int, int]) -> None:
    """J15, PR13: the last transaction of a release may carry it; who claims the shard finds it."""
    write = TableWrite(
        0,
        epochs[0],
        mailbox=(mail("a", 1),),
        outbox=(message(1),),
        timers=(timer("a", "x", 5),),
        end=CheckpointEnd(1, (), release=True),
    )
    await store.checkpoint(host, [write])
    assert (await row_of(store, 0)).owners == ()
    other = await store.register_host("b:1", "n", None)
    await own(store, other, 0)
    (work,) = await store.read_pending([0])
    assert [mailbox.id for mailbox in work.mailboxes] == ["a"]
    assert work.outbox == (message(1),)
    assert await all_timers(store) == [timer("a", "x", 5)]


async def test_only_the_owner_changes_pending_work(store: Store, host: int, epochs: dict[int, int]) -> None:
    """PR07: nothing has a version of its own here: a zombie's rows and deletions are left out whole, by the shard's row."""
    first = TableWrite(
        0,
        epochs[0],
        mailbox=(mail("a", 1),),
        outbox=(message(1),),
        timers=(timer("a", "x", 5),),
        dead_letters=(letter(1),),
    )
    await store.checkpoint(host, [first])
    await own(store, await store.register_host("b:1", "n", None), 0)
    late = [
        TableWrite(
            0,
            epochs[0],
            mailbox=(mail("a", 1, b"late"), mail("a", 2)),
            mailbox_attempts=((KIND, "a", 1, 9),),
            outbox=(message(2),),
            timers=(timer("a", "x", 6),),
            dead_letters=(letter(2),),
        ),
        TableWrite(
            0,
            epochs[0],
            mailbox_done=((KIND, "a", 1),),
            outbox_done=(1,),
            timers_gone=((KIND, "a", "x"),),
            timers_cleared=((KIND, "a"),),
            letters_gone=(1,),
        ),
    ]
    for write in late:
        assert await store.checkpoint(host, [write]) == {0}
    assert await store.read_mailbox(0, KIND, "a") == [mail("a", 1)]
    assert await outbox(store) == [message(1)]
    assert await all_timers(store) == [timer("a", "x", 5)]
    assert await store.read_dead_letters(0) == [letter(1)]


async def test_rows_that_were_read_are_not_changed_by_later_writes(
    store: Store, host: int, epochs: dict[int, int]
) -> None:
    """What a reader holds is its own."""
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox=(mail("a", 1),))])
    (row,) = await store.read_mailbox(0, KIND, "a")
    await store.checkpoint(host, [TableWrite(0, epochs[0], mailbox_attempts=((KIND, "a", 1, 3),))])
    assert row == mail("a", 1)
    assert await store.read_mailbox(0, KIND, "a") == [replace(row, attempts=3)]


async def test_a_shard_that_does_not_exist_has_no_pending_work_to_read(store: Store) -> None:
    """Who hashes by another shard count is told so."""
    for wrong in (-1, 4):
        for call in (
            store.read_pending([0, wrong]),
            store.read_mailbox(wrong, KIND, "a"),
            store.read_timers(wrong, BEFORE_ALL_TIMERS, 0, 1),
            store.read_dead_letters(wrong),
            store.delete_history(wrong, KIND, "a", 1),
        ):
            with pytest.raises(ValueError, match="does not exist"):
                await call


async def test_nothing_is_asked_of_no_shards(store: Store) -> None:
    assert await store.read_pending([]) == []
