"""`atoll log` and `atoll journal`: looking into a store, with hosts running on it or without."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from ..actors.settings import Settings
from .cli_common import AppDir, AppPath, AsJson, StoreUrls, show, told_in_one_line
from .loading import load_app
from .reading import StoreReader, reader_of, reading
from .stores import store_urls

log = typer.Typer(help="What stands in the logs of hosts, dead ones included.", no_args_is_help=True)
journal = typer.Typer(help="What happened to one entity.", no_args_is_help=True)

FOLLOW_S = 0.5

Kind = Annotated[str, typer.Argument(metavar="KIND")]
Id = Annotated[str, typer.Argument(metavar="ID")]


Readers = Sequence[StoreReader]
"""One per database."""


def read_store(
    app_path: str,
    app_dir: str,
    store: list[str] | None,
    work: Callable[[Readers], Awaitable[None]],
    id: str | None = None,
) -> None:
    """Do `work` on the app's databases, whether hosts run on them or not; with an `id` on the one of that entity."""

    async def with_store() -> None:
        app = load_app(app_path, app_dir)
        settings, _ = Settings.load(app.settings_asked, os.environ)
        async with reading(store_urls(app, store or (), os.environ), app.name, settings.shards) as readers:
            await work(readers if id is None else [reader_of(readers, id, settings.shards)])

    with told_in_one_line():
        asyncio.run(with_store())


def print_lines(entries: list[dict[str, Any]]) -> None:
    """One JSON object a line: to be read, searched and piped."""
    for entry in entries:
        typer.echo(json.dumps(entry, ensure_ascii=False))


@log.command("list")
def log_list(app_path: AppPath, app_dir: AppDir = ".", store: StoreUrls = None, as_json: AsJson = False) -> None:
    """List the logs: whose, in which state, how many rows."""

    async def work(readers: Readers) -> None:
        found = [
            ({"database": number} if len(readers) > 1 else {}) | entry
            for number, reader in enumerate(readers, 1)
            for entry in await reader.logs()
        ]
        if as_json:
            print_lines(found)
            return
        table = Table(*(found[0] if found else ("incarnation",)), box=SIMPLE)
        for entry in found:
            table.add_row(*map(str, entry.values()))
        show(table)

    read_store(app_path, app_dir, store, work)


@log.command("show")
def log_show(
    app_path: AppPath,
    incarnation: Annotated[int, typer.Argument(help="as `atoll log list` shows it")],
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    after: Annotated[int, typer.Option(help="only rows above this one")] = 0,
    database: Annotated[int, typer.Option(help="whose log, where the app has several: 1 is the first", min=1)] = 1,
) -> None:
    """Decode a log: one record a line, as JSON."""

    async def work(readers: Readers) -> None:
        if database > len(readers):
            raise ValueError(f"the app has {len(readers)} databases: there is no number {database}")
        print_lines(await readers[database - 1].log(incarnation, after))

    read_store(app_path, app_dir, store, work)


@journal.command("show")
def journal_show(
    app_path: AppPath,
    kind: Kind,
    id: Id,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    after: Annotated[int, typer.Option(help="only commits above this version")] = 0,
) -> None:
    """Show an entity's commits, oldest first, one a line as JSON."""

    async def work(readers: Readers) -> None:
        (reader,) = readers
        commits = await reader.journal(kind, id, after)
        print_lines(commits)
        if not commits:
            print_lines([await reader.state(kind, id)])

    read_store(app_path, app_dir, store, work, id)


@journal.command("state")
def journal_state(app_path: AppPath, kind: Kind, id: Id, app_dir: AppDir = ".", store: StoreUrls = None) -> None:
    """Show the newest state of an entity that the tables have."""

    async def work(readers: Readers) -> None:
        (reader,) = readers
        print_lines([await reader.state(kind, id)])

    read_store(app_path, app_dir, store, work, id)


@journal.command("tail")
def journal_tail(app_path: AppPath, kind: Kind, id: Id, app_dir: AppDir = ".", store: StoreUrls = None) -> None:
    """Follow an entity's commits until interrupted."""

    async def work(readers: Readers) -> None:
        (reader,) = readers
        seen = 0
        while True:
            commits = await reader.journal(kind, id, seen)
            print_lines(commits)
            seen = commits[-1]["seq"] if commits else seen
            await asyncio.sleep(FOLLOW_S)

    read_store(app_path, app_dir, store, work, id)
