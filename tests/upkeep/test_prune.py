"""Pruning drops what was named and nobody needs, and says before what would go; figures say what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_rows import KIND, client, commit, entity, letter, mail, message, named, own, timer, without_snapshot
from upkeep_app import silent

from atoll.actors.settings import Settings
from atoll.actors.stored import StoredState
from atoll.cluster.store_check import check_store
from atoll.cluster.store_prune import Pruned, Pruning, ages, check_kinds, prune
from atoll.cluster.store_stats import KindFigures, figures
from atoll.cluster.store_walk import pages
from atoll.cluster.system import SystemWorld
from atoll.persistence.open import open_store
from atoll.persistence.records import EntityRow, Record, encode_batch
from atoll.persistence.spi import CheckpointEnd, Store, TableWrite
from atoll.persistence.tables import Table
from atoll.sharding.charge import StoreInUse
from atoll.sharding.hashing import shard_of

SETTINGS = Settings(shards=4, lease_s=0.05)
SHARD = shard_of("alice", 4)
HERE = [id for id in map(str, range(99)) if shard_of(id, 4) == SHARD]
COVERED, BARE, GONE, OTHER = HERE[:4]
"""Event-sourced: with a snapshot of version 2 of 3, without one, deleted, and of another kind."""
ALL = Pruning(events_of=frozenset({KIND}), command_ids_before_ms=1500, letters_before_ms=1005)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = {"memory": "memory:", "sqlite": f"sqlite:{tmp_path / 'store'}"}.get(request.param)
    return url or str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = open_store(url)
    await store.open("bank", 4)
    yield store
    await store.close()


@pytest.fixture
async def filled(store: Store) -> Store:
    host = await store.register_host("127.0.0.1:2", "", None)
    epochs = await own(store, host)
    histories = [(COVERED, KIND), (BARE, KIND), (GONE, KIND), (OTHER, "Other")]
    events = [
        commit(3 * number + seq, id, seq, kind=kind) for number, (id, kind) in enumerate(histories) for seq in (1, 2, 3)
    ]
    write = TableWrite(
        SHARD,
        epochs[SHARD],
        entities=(
            EntityRow(KIND, COVERED, 3, StoredState(1, b"two"), 2),
            without_snapshot(BARE, 3),
            entity(GONE, 4, deleted=True),
            EntityRow("Other", OTHER, 3, StoredState(1, b"three"), 3),
        ),
        clients=(client(1, 4, 4, 5),),
        named=(named("alice", "old", 1000), named("alice", "new", 2000)),
        mailbox=(mail("alice", 8),),
        outbox=(message(2 << 16, "alice"),),
        timers=(timer("alice", "close", 9000),),
        dead_letters=(letter(3, "alice"), letter(7, "alice")),
        end=CheckpointEnd(12, tuple(events)),
    )
    await store.checkpoint(host, [write])
    for n in (1, 2):
        tail = Record(SHARD, 12 + n, KIND, BARE, 3 + n, events=commit(12 + n, BARE, 3 + n).events)
        await store.append(host, n, encode_batch([tail], host, n))
    return store


async def pruned(store: Store, pruning: Pruning, *, dry_run: bool = False) -> Pruned:
    return await prune(store, pruning, SETTINGS, SystemWorld(), silent, dry_run=dry_run)


async def left(store: Store, table: Table) -> list[object]:
    return [row async for page in pages(store, table, SHARD) for row in page]


async def test_pruning_drops_what_was_named_and_nobody_needs(filled: Store) -> None:
    """J07, J08, J16: events that a snapshot or a deletion covers, expired command IDs, old letters, finished logs; all
    else stays, and the store is sound."""
    assert await pruned(filled, ALL) == Pruned(events=5, command_ids=1, dead_letters=1, log_rows=1)
    assert [row.seq for row in await filled.read_commits(SHARD, KIND, COVERED)] == [3]
    assert [row.seq for row in await filled.read_commits(SHARD, KIND, BARE)] == [1, 2, 3, 4, 5]
    assert await filled.read_commits(SHARD, KIND, GONE) == []
    assert [row.seq for row in await filled.read_commits(SHARD, "Other", OTHER)] == [1, 2, 3]
    assert await left(filled, Table.NAMED) == [named("alice", "new", 2000)]
    assert await left(filled, Table.DEAD_LETTERS) == [letter(7, "alice")]
    assert await left(filled, Table.MAILBOX) == [mail("alice", 8)]
    assert len(await filled.read_log(1)) == 1
    assert await check_store(filled, SETTINGS, silent) == []
    assert await pruned(filled, ALL) == Pruned()


async def test_only_what_is_asked_for_is_dropped(filled: Store) -> None:
    """J07: without a kind no event goes, without an age no letter."""
    assert await pruned(filled, Pruning()) == Pruned(log_rows=1)
    assert len(await left(filled, Table.HISTORY)) == 14
    assert len(await left(filled, Table.DEAD_LETTERS)) == 2


async def test_command_ids_and_letters_go_kind_by_kind(filled: Store) -> None:
    """M03, M08: those of the kind that was named, younger ones than the app's retention with them; no other kind's."""
    assert await pruned(filled, Pruning(command_ids_of={"Other": 9000}, letters_of={"Other": 9000})) == Pruned(
        log_rows=1
    )
    assert await pruned(filled, Pruning(letters_before_ms=9000, letters_of={KIND: 1004})) == Pruned(dead_letters=1)
    assert await left(filled, Table.DEAD_LETTERS) == [letter(7, "alice")]
    assert await pruned(filled, Pruning(command_ids_before_ms=500, command_ids_of={KIND: 1500})) == Pruned(
        command_ids=1
    )
    assert await left(filled, Table.NAMED) == [named("alice", "new", 2000)]


@pytest.mark.parametrize("asked", [["x"], ["1", "2"], ["A=1", "A=2"], ["A="], ["A=-1"], ["nan"], ["A=1e9"], [""]])
def test_an_age_that_is_none_is_a_mistake(asked: list[str]) -> None:
    """J07: told before anything is dropped."""
    with pytest.raises(ValueError, match="is no age"):
        ages(asked)
    assert ages(["A=1", "30", "B=0.5"]) == (30.0, {"A": 1.0, "B": 0.5})


async def test_a_dry_run_changes_nothing_and_says_what_would_go(filled: Store) -> None:
    """J07: not even who owns what."""
    before = (await filled.shards(), await filled.hosts(), await figures(filled, "bank", silent))
    assert await pruned(filled, ALL, dry_run=True) == Pruned(events=5, command_ids=1, dead_letters=1)
    assert (await filled.shards(), await filled.hosts(), await figures(filled, "bank", silent)) == before


async def test_a_store_that_is_in_use_is_not_pruned(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """J07: neither in earnest nor dry; nothing is dropped."""
    hosts = filled.hosts

    async def renewed() -> object:
        await filled.renew(1)
        return await hosts()

    monkeypatch.setattr(filled, "hosts", renewed)
    for dry_run in (True, False):
        with pytest.raises(StoreInUse, match="stop it first"):
            await pruned(filled, ALL, dry_run=dry_run)
    assert len(await left(filled, Table.NAMED)) == 2


def test_a_kind_that_the_app_has_not_is_a_mistake() -> None:
    """J07: told before anything is dropped."""
    with pytest.raises(ValueError, match="no kind 'Acount': it has Account, Other"):
        check_kinds(["Acount"], ["Other", "Account"])


async def test_figures_count_every_table(filled: Store) -> None:
    """J15: kind by kind, with the bytes that its authors stored."""
    found = await figures(filled, "bank", silent)
    assert found.kinds == {
        KIND: KindFigures(
            entities=2,
            deleted=1,
            commits=9,
            events=9,
            command_ids=2,
            mailbox=1,
            outbox=1,
            timers=1,
            dead_letters=2,
            state_bytes=3,
            event_bytes=9 * len(f"{BARE}#1"),
            other_bytes=found.kinds[KIND].other_bytes,
        ),
        "Other": KindFigures(entities=1, commits=3, events=3, state_bytes=5, event_bytes=3 * len(f"{OTHER}#1")),
    }
    assert found.kinds[KIND].other_bytes > 0
    assert (found.shards, found.clients, found.log_rows, found.logs, found.uncheckpointed_shards) == (4, 1, 2, 1, 4)
