"""`atoll store export|import`: upkeep of a store as a whole. Thin: what happens stands in `store_*.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..actors.app import App
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.spi import Store
from ..persistence.urls import shown
from .api import software
from .cli_common import AppDir, AppPath, console, errors, told_in_one_line
from .cli_reading import StoreUrl
from .loading import load_app
from .reading import existing_store
from .signals import end_on_sigterm
from .starting import store_url
from .store_export import Tell, export_store, new_file
from .store_import import import_store
from .system import SystemWorld

upkeep = typer.Typer()

Result = TypeVar("Result")
File = Annotated[Path, typer.Argument(metavar="FILE")]


def _loaded(app_path: str, app_dir: str, store: str | None) -> tuple[App, Settings, str]:
    app = load_app(app_path, app_dir)
    settings, _ = Settings.load(app.settings_asked, os.environ)
    return app, settings, store_url(app, store, os.environ)


@contextlib.asynccontextmanager
async def _opened(url: str, app: App, settings: Settings) -> AsyncIterator[Store]:
    store = await existing_store(url)
    await store.open(app.name, settings.shards)
    try:
        yield store
    finally:
        await store.close()


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


@upkeep.command("export")
def export_command(app_path: AppPath, file: File, app_dir: AppDir = ".", store: StoreUrl = None) -> None:
    """Write a store into one file that any MessagePack library can read. The app must not run."""
    with told_in_one_line(), _bar(f"exporting to {file}") as tell:
        app, settings, url = _loaded(app_path, app_dir, store)

        async def work() -> int:
            async with _opened(url, app, settings) as opened:
                with new_file(file) as out:
                    return await export_store(
                        opened,
                        out,
                        app=app.name,
                        settings=settings,
                        world=SystemWorld(),
                        software=software(),
                        tell=tell,
                    )

        rows = _run(work)
    console.print(f"{rows} rows of {app.name} are in {file}", style="green", soft_wrap=True, markup=False)


@upkeep.command("import")
def import_command(app_path: AppPath, file: File, app_dir: AppDir = ".", store: StoreUrl = None) -> None:
    """Load an export into a new store. If it is interrupted, run the same import again."""
    with told_in_one_line(), _bar(f"importing {file}") as tell:
        app, settings, url = _loaded(app_path, app_dir, store)
        with file.open("rb") as source:
            rows = _run(lambda: import_store(open_store(url), source, app=app.name, settings=settings, tell=tell))
    console.print(f"{rows} rows of {app.name} are in {shown(url)}", style="green", soft_wrap=True, markup=False)
