"""`atoll store check|stats|prune|backup|export|import`: upkeep of a whole store. Thin: the work is in `store_*.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.box import SIMPLE
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..actors.app import App
from ..actors.errors import AtollError
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import Store
from ..persistence.sqlite import SQLiteStore
from ..persistence.urls import shown
from ..sharding.charge import quiet_holders
from .api import software
from .cli_common import AppDir, AppPath, AsJson, StoreUrls, console, errors, fail, show, told_in_one_line
from .loading import load_app
from .log_format import printable
from .reading import existing_stores
from .signals import end_on_sigterm
from .store_check import check_store
from .store_export import export_store, new_file, standing_still
from .store_import import import_store
from .store_prune import Pruned, Pruning, ages, check_kinds, prune
from .store_stats import Figures, KindFigures, figures, in_all
from .store_walk import Tell
from .stores import store_urls
from .system import SystemWorld

upkeep = typer.Typer()

DAY_MS = 86_400_000
PG_DUMP = (
    "pg_dump --format=custom --file=FILE URL, as the owner (deploy/README.md has how to go on from it), or "
    "pg_basebackup of the whole server; `atoll store export` makes a copy that any store can import"
)

Result = TypeVar("Result")
File = Annotated[Path, typer.Argument(metavar="FILE")]


class NotHere(AtollError):
    """This kind of store cannot do that; the message says what to do."""


def _loaded(app_path: str, app_dir: str, store: list[str] | None) -> tuple[App, Settings, tuple[str, ...]]:
    app = load_app(app_path, app_dir)
    settings, _ = Settings.load(app.settings_asked, os.environ)
    return app, settings, store_urls(app, store or (), os.environ)


def _opened(urls: Sequence[str], app: App, settings: Settings) -> contextlib.AbstractAsyncContextManager[list[Store]]:
    return existing_stores(urls, app.name, settings.shards)


def _all(urls: Sequence[str]) -> str:
    return ", ".join(map(shown, urls))


def _only(urls: Sequence[str], what: str) -> str:
    """The one database of an app. Raises `NotHere` when it has several."""
    if len(urls) > 1:
        raise NotHere(f"an app with {len(urls)} databases cannot be {what} yet: only one with a single database")
    return urls[0]


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Tell]:
    """A progress bar where there is a terminal; it goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        return await work()

    end_on_sigterm()
    return asyncio.run(run())


@upkeep.command()
def check(app_path: AppPath, app_dir: AppDir = ".", store: StoreUrls = None) -> None:
    """Look over a store: every row, log and reference. The app must not run; of a running one check a backup.

    Prints what is damaged, a line each, and exits with 1 then.
    """
    with told_in_one_line(), _bar("checking") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)

        async def work() -> list[str]:
            async with _opened(urls, app, settings) as stores:
                found = []
                for url, opened in zip(urls, stores, strict=True):
                    lines = await check_store(opened, settings, tell)
                    found += lines if len(urls) == 1 else [f"{shown(url)}: {line}" for line in lines]
                return found

        found = _run(work)
    for line in found:
        console.print(printable(line), soft_wrap=True, markup=False)
    if found:
        fail(f"{_all(urls)} is damaged, see above: keep it as it is, and restore the whole store from a backup")
    console.print(f"{_all(urls)} is sound", style="green", soft_wrap=True, markup=False)


@upkeep.command()
def stats(app_path: AppPath, app_dir: AppDir = ".", store: StoreUrls = None, as_json: AsJson = False) -> None:
    """Count what a store holds, kind by kind, with hosts running on it or without."""
    with told_in_one_line(), _bar("counting") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)

        async def work() -> Figures:
            async with _opened(urls, app, settings) as stores:
                return in_all([await figures(opened, app.name, tell) for opened in stores])

        found = _run(work)
    if as_json:
        console.print_json(msgspec.json.encode(found).decode())
        return
    table = Table("kind", *(name.replace("_", " ") for name in KindFigures.__struct_fields__), box=SIMPLE)
    for kind, counted in found.kinds.items():
        table.add_row(Text(printable(kind)), *(f"{value:,}" for value in msgspec.structs.astuple(counted)))
    show(table)
    rest = {name: value for name, value in msgspec.structs.asdict(found).items() if isinstance(value, int)}
    console.print("  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in rest.items()), soft_wrap=True)


def _pruning(
    app: App,
    settings: Settings,
    now_ms: int,
    events: list[str] | None,
    letters: list[str] | None,
    ids: list[str] | None,
) -> Pruning:
    """What the options of `prune` say. Raises `ValueError`."""
    letters_days, letters_of = ages(letters or ())
    ids_days, ids_of = ages(ids or ())
    if ids_days is not None:
        raise ValueError("command IDs are forgotten kind by kind: --command-ids-older-than KIND=DAYS")
    check_kinds((*letters_of, *ids_of), app.kinds)
    return Pruning(
        events_of=check_kinds(events or (), app.kinds),
        command_ids_before_ms=now_ms - int(settings.command_id_retention_s * 1000),
        command_ids_of={kind: now_ms - int(days * DAY_MS) for kind, days in ids_of.items()},
        letters_before_ms=0 if letters_days is None else now_ms - int(letters_days * DAY_MS),
        letters_of={kind: now_ms - int(days * DAY_MS) for kind, days in letters_of.items()},
    )


@upkeep.command("prune")
def prune_command(
    app_path: AppPath,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    events_below_snapshot: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="drop its events that a snapshot covers; may be repeated")
    ] = None,
    dead_letters_older_than: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[KIND=]DAYS", help="drop dead letters that are older, of all kinds or of one; repeatable"
        ),
    ] = None,
    command_ids_older_than: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=DAYS", help="forget its older command IDs: they would run again; repeatable"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="drop nothing, say what would go")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop replies to expired command IDs and rows of finished logs, and what else is named. The app must not run."""
    with told_in_one_line(), _bar("pruning") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)
        world = SystemWorld()
        pruning = _pruning(
            app, settings, world.wall_ms(), events_below_snapshot, dead_letters_older_than, command_ids_older_than
        )

        async def work() -> Pruned:
            async with _opened(urls, app, settings) as stores:
                parts = [await prune(opened, pruning, settings, world, tell, dry_run=dry_run) for opened in stores]
                return Pruned(*map(sum, zip(*map(msgspec.structs.astuple, parts), strict=True)))

        found = msgspec.structs.asdict(_run(work))
    if as_json:
        console.print_json(json.dumps(found))
        return
    what = "  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in found.items())
    console.print(f"{'would drop' if dry_run else 'dropped'}  {what}", soft_wrap=True)


@upkeep.command()
def backup(
    app_path: AppPath,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="where the copy is made: a new folder")],
    app_dir: AppDir = ".",
    store: StoreUrls = None,
) -> None:
    """Copy an SQLite store as of one moment, with hosts running on it or without.

    Of an app with several databases, which must not run, each becomes a folder in FOLDER, called by its number.
    """
    with told_in_one_line(), _bar(f"copying to {to}") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)

        async def work() -> None:
            async with _opened(urls, app, settings) as stores:
                copied = [store for store in stores if isinstance(store, SQLiteStore)]
                if len(copied) < len(stores):
                    raise NotHere(
                        f"{_all(urls)} is backed up by its server's own tools, also while the app runs: {PG_DUMP}"
                    )
                if len(copied) == 1:
                    await copied[0].backup(to.absolute(), tell)
                    return
                for opened in copied:  # copies of several instants would disagree about messages between them
                    await quiet_holders(opened, settings.lease_s)
                to.mkdir(parents=True)
                for number, opened in enumerate(copied, 1):
                    await opened.backup(to.absolute() / str(number), tell)

        _run(work)
    console.print(f"{app.name} is copied to {to}", style="green", soft_wrap=True, markup=False)


@upkeep.command("export")
def export_command(app_path: AppPath, file: File, app_dir: AppDir = ".", store: StoreUrls = None) -> None:
    """Write a store into one file that any MessagePack library can read.

    Where the app runs, of a copy as of one moment, which is made beside the file and removed.
    """
    with told_in_one_line(), _bar(f"exporting to {file}") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)
        _only(urls, "exported")
        folder = file.absolute().parent
        world = SystemWorld()

        async def work() -> int:
            async with (
                _opened(urls, app, settings) as (opened,),
                standing_still(opened, app.name, settings, world, folder, tell) as still,
            ):
                with new_file(file) as out:
                    return await export_store(
                        still,
                        out,
                        app=app.name,
                        settings=settings,
                        world=world,
                        software=software(),
                        tell=tell,
                    )

        rows = _run(work)
    console.print(f"{rows} rows of {app.name} are in {file}", style="green", soft_wrap=True, markup=False)


@upkeep.command("import")
def import_command(app_path: AppPath, file: File, app_dir: AppDir = ".", store: StoreUrls = None) -> None:
    """Load an export into a new store. If it is interrupted, run the same import again."""
    with told_in_one_line(), _bar(f"importing {file}") as tell:
        app, settings, urls = _loaded(app_path, app_dir, store)
        url = _only(urls, "imported")
        with file.open("rb") as source:
            rows = _run(lambda: import_store(open_store(url), source, app=app.name, settings=settings, tell=tell))
    console.print(f"{rows} rows of {app.name} are in {shown(url)}", style="green", soft_wrap=True, markup=False)
