"""Dropping what a store need not keep: only what was asked for, and only of a stopped app.

    events below a snapshot     of kinds that were named: history that nobody needs to know what an entity is
    replies to command IDs      older than the app keeps them; a running app drops them by and by itself. Of kinds that
                                were named also younger ones: a command that comes again with such an ID runs again
    dead letters                older than was asked for, of all kinds or of some
    rows of finished logs       what they hold stands in the tables; a log's newest row and its seal stay

Beside a running app it is refused: an owner counts its dead letters, and an entity that is just being loaded may be
about to read events that a newer snapshot covers. With every shard in hand (sharding/charge.py) nobody else can be
there. A dry run takes nothing into its hands, and counts what the tables show.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Mapping

import msgspec

from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.records import DeadLetterRow, EntityRow, NamedReply
from ..persistence.rows import covered_seq
from ..persistence.spi import Store
from ..persistence.tables import Table
from ..sharding.charge import Charge, in_charge, quiet_holders
from .store_walk import Tell, commits, pages

_NUMBER = re.compile(r"\d+(\.\d+)?")


class Pruning(msgspec.Struct, frozen=True):
    """What is to go."""

    events_of: frozenset[str] = frozenset()
    """Kinds whose events below their snapshot, or of deleted entities, go."""
    command_ids_before_ms: int = 0
    """Of all kinds; 0: none."""
    command_ids_of: Mapping[str, int] = {}
    """Kind -> also those of it that are from before then."""
    letters_before_ms: int = 0
    letters_of: Mapping[str, int] = {}


class Pruned(msgspec.Struct):
    """What went, or would go."""

    events: int = 0
    """Commits of events."""
    command_ids: int = 0
    dead_letters: int = 0
    log_rows: int = 0


def ages(asked: Iterable[str]) -> tuple[float | None, dict[str, float]]:
    """What `[KIND=]DAYS` says, each at most once: days for all kinds, and for those that are named. Raises
    `ValueError`."""
    for_all: float | None = None
    named: dict[str, float] = {}
    for each in asked:
        kind, _equals, text = each.rpartition("=")
        days = float(text) if _NUMBER.fullmatch(text) else None
        if days is None or kind in named or (not kind and for_all is not None):
            raise ValueError(f"{each!r} is no age: DAYS for all kinds or KIND=DAYS for one, each once")
        if kind:
            named[kind] = days
        else:
            for_all = days
    return for_all, named


def check_kinds(asked: Iterable[str], known: Iterable[str]) -> frozenset[str]:
    """Raise `ValueError` for a kind that the app has not, before anything is dropped."""
    kinds = frozenset(asked)
    if strangers := sorted(kinds - set(known)):
        raise ValueError(f"the app has no kind {strangers[0]!r}: it has {', '.join(sorted(known))}")
    return kinds


async def prune(
    store: Store, pruning: Pruning, settings: Settings, world: World, tell: Tell, *, dry_run: bool = False
) -> Pruned:
    """Raises `StoreInUse` when the app runs, or was started meanwhile: then a part is done."""
    pruned = Pruned()
    async with _hands(store, settings, world, dry_run=dry_run) as charge:
        rows = await store.shards()
        for done, row in enumerate(rows, 1):
            await _command_ids(store, row.shard, pruning, charge, pruned)
            await _dead_letters(store, row.shard, pruning, charge, pruned)
            await _events(store, row.shard, pruning, charge, pruned)
            tell(done, len(rows))
        if charge is not None:
            await charge.check()
    await _log_rows(store, pruned, dry_run=dry_run)
    return pruned


@contextlib.asynccontextmanager
async def _hands(store: Store, settings: Settings, world: World, *, dry_run: bool) -> AsyncIterator[Charge | None]:
    if dry_run:
        await quiet_holders(store, settings.lease_s)
        yield None
        return
    async with in_charge(store, settings, world) as charge:
        yield charge


async def _command_ids(store: Store, shard: int, pruning: Pruning, charge: Charge | None, pruned: Pruned) -> None:
    before = pruning.command_ids_before_ms
    async for page in pages(store, Table.NAMED, shard):
        old = tuple(
            (row.kind, row.id, row.command_id)
            for row in page
            if isinstance(row, NamedReply) and row.time_ms < max(before, pruning.command_ids_of.get(row.kind, 0))
        )
        if old and charge is not None:
            await charge.write(shard, named_gone=old)
        pruned.command_ids += len(old)


async def _dead_letters(store: Store, shard: int, pruning: Pruning, charge: Charge | None, pruned: Pruned) -> None:
    async for page in pages(store, Table.DEAD_LETTERS, shard):
        old = tuple(
            row.number
            for row in page
            if isinstance(row, DeadLetterRow)
            and row.letter.time_ms < pruning.letters_of.get(row.kind, pruning.letters_before_ms)
        )
        if old and charge is not None:
            await charge.write(shard, letters_gone=old)
        pruned.dead_letters += len(old)


async def _events(store: Store, shard: int, pruning: Pruning, charge: Charge | None, pruned: Pruned) -> None:
    if not pruning.events_of:
        return
    async for page in pages(store, Table.ENTITIES, shard):
        for row in page:
            if isinstance(row, EntityRow) and row.kind in pruning.events_of and covered_seq(row):
                through = covered_seq(row)
                old = sum([len(some) async for some in commits(store, shard, row.kind, row.id, 0, through)])
                if old and charge is not None:
                    await charge.check()
                    await store.delete_history(shard, row.kind, row.id, through)
                pruned.events += old


async def _log_rows(store: Store, pruned: Pruned, *, dry_run: bool) -> None:
    for incarnation in await store.finished_logs():
        rows = await store.read_log(incarnation)
        pruned.log_rows += max(0, len(rows) - 1)  # the newest stays
        if len(rows) > 1 and not dry_run:
            await store.delete_log_rows(incarnation, rows[-1].n)
