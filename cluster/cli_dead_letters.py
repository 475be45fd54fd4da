"""`atoll dead-letters`: commands that will not be tried again by themselves. Looked at, replayed, or dropped.

`list` and `show` read the store, with hosts running on it or without. `replay` and `drop` are commands to the letter's
entity, which the owner of its shard carries out exactly once: the client's window makes a copy that is sent again safe,
and who asks anew after an unknown outcome is refused when it was done, since that letter is gone. (What dies again
after a replay is another letter.) So they need no command ID.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ..actors.app import App
from ..actors.calls import Request
from ..actors.errors import AtollError, InvalidCommand, OutcomeUnknown
from ..actors.settings import Settings
from ..sharding.letters import DROP, REPLAY
from .api import Cluster, connect
from .cli_common import Address, AppDir, AppPath, AsJson, StoreUrls, console, fail, show, told_in_one_line
from .cli_reading import Id, Kind, Readers, print_lines, read_store
from .loading import load_app
from .log_format import printable
from .reading import letter_line, reader_of, reading
from .stores import store_urls

dead_letters = typer.Typer(help="Commands that will not be tried again by themselves.", no_args_is_help=True)

COLUMNS = ("time", "kind", "id", "number", "method", "attempts", "reason", "error")
DONE = {REPLAY: "replayed", DROP: "dropped"}

Letter = tuple[str, str, int]
"""(kind, ID, number)"""

MaybeKind = Annotated[str | None, typer.Argument(metavar="KIND")]
MaybeId = Annotated[str | None, typer.Argument(metavar="ID")]
Number = Annotated[
    int, typer.Argument(metavar="NUMBER", help="as `atoll dead-letters list` shows it", min=1, max=2**63 - 1)
]
MaybeNumber = Annotated[
    int | None, typer.Argument(metavar="NUMBER", help="as `atoll dead-letters list` shows it", min=1, max=2**63 - 1)
]
All = Annotated[bool, typer.Option("--all", help="every one of that KIND, or of that entity")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="tcp://host:port of the running app; default: found by its name, from inside Ray"),
]
TokenFile = Annotated[str | None, typer.Option("--token-file", help="for --url; default ATOLL_TOKEN_FILE")]


@dead_letters.command("list")
def list_letters(
    app_path: AppPath,
    kind: MaybeKind = None,
    id: MaybeId = None,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    limit: Annotated[int, typer.Option(help="at most so many, the newest", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest last."""

    async def work(readers: Readers) -> None:
        newest: list[tuple[str, int, dict[str, Any]]] = []
        found = 0
        for reader in readers:
            async for row in reader.dead_letters(kind, id):
                found += 1
                line = letter_line(row)
                (heapq.heappush if found <= limit else heapq.heappushpop)(newest, (line["time"], found, line))
        lines = [line for _, _, line in sorted(newest)]
        if as_json:
            print_lines(lines)
        else:
            _show(lines, found)

    read_store(app_path, app_dir, store, work, id)


def _show(lines: list[dict[str, Any]], found: int) -> None:
    if not found:
        console.print("no dead letters")
        return
    table = Table(*COLUMNS, box=SIMPLE)
    for line in lines:
        first = line["error"].partition("\n")[0]
        table.add_row(*(Text(printable(str(value))) for value in {**line, "error": first}.values()))
    show(table)
    if found > len(lines):
        console.print(f"these are the newest {len(lines)} of {found}: see more with --limit")


@dead_letters.command("show")
def show_letter(
    app_path: AppPath, kind: Kind, id: Id, number: Number, app_dir: AppDir = ".", store: StoreUrls = None
) -> None:
    """Show one dead letter with its error and its arguments, as JSON."""

    async def work(readers: Readers) -> None:
        (reader,) = readers
        print_lines([await reader.dead_letter(kind, id, number)])

    read_store(app_path, app_dir, store, work, id)


@dead_letters.command()
def replay(
    app_path: AppPath,
    kind: Kind,
    id: MaybeId = None,
    number: MaybeNumber = None,
    every: All = False,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    url: Url = None,
    token_file: TokenFile = None,
    address: Address = None,
) -> None:
    """Put dead letters back into the mailboxes of their entities, oldest first. The app must run."""
    with told_in_one_line():
        app, settings = _loaded(app_path, app_dir)
        letters = asyncio.run(_named(app, settings, store, kind, id, number, every=every))
        _through_app(REPLAY, letters, app, url, token_file, address)


@dead_letters.command()
def drop(
    app_path: AppPath,
    kind: Kind,
    id: MaybeId = None,
    number: MaybeNumber = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    url: Url = None,
    token_file: TokenFile = None,
    address: Address = None,
) -> None:
    """Delete dead letters for ever. The app must run."""
    with told_in_one_line():
        app, settings = _loaded(app_path, app_dir)
        letters = asyncio.run(_named(app, settings, store, kind, id, number, every=every))
        if letters and not yes:
            _confirm(letters)
        _through_app(DROP, letters, app, url, token_file, address)


# ---- which ones


def _loaded(app_path: str, app_dir: str) -> tuple[App, Settings]:
    app = load_app(app_path, app_dir)
    settings, _ = Settings.load(app.settings_asked, os.environ)
    return app, settings


async def _named(
    app: App, settings: Settings, store: list[str] | None, kind: str, id: str | None, number: int | None, *, every: bool
) -> list[Letter]:
    """The one that is named, or with `every` those that are there now: what dies again meanwhile is left alone."""
    if every and number is None:
        async with reading(store_urls(app, store or (), os.environ), app.name, settings.shards) as readers:
            asked = readers if id is None else [reader_of(readers, id, settings.shards)]
            return [(row.kind, row.id, row.number) for reader in asked async for row in reader.dead_letters(kind, id)]
    if every or id is None or number is None:
        raise ValueError("name one dead letter by KIND ID NUMBER, or those of a KIND, or of a KIND and ID, with --all")
    return [(kind, id, number)]


def _confirm(letters: list[Letter]) -> None:
    what = _name(letters[0]) if len(letters) == 1 else f"{len(letters)} dead letters"
    try:
        sure = typer.confirm(f"drop {what} for ever?", err=True)
    except typer.Abort:  # nobody is there to be asked
        typer.echo(err=True)
        sure = False
    if not sure:
        fail("nothing was dropped: --yes drops without asking")


def _name(letter: Letter) -> str:
    kind, id, number = letter
    return printable(f"{kind}/{id} {number}")


# ---- through the running app


def _through_app(
    method: str, letters: list[Letter], app: App, url: str | None, token_file: str | None, address: str | None
) -> None:
    if not letters:
        console.print("no dead letters")
        return
    try:
        with _in_ray(url, address):
            asyncio.run(_carry_out(method, letters, app, url, token_file))
    except KeyboardInterrupt:
        fail("interrupted: `atoll dead-letters list` shows what is left", 130)
    what = _name(letters[0]) if len(letters) == 1 else str(len(letters))
    console.print(f"{DONE[method]} {what}", style="green", markup=False)


@contextlib.contextmanager
def _in_ray(url: str | None, address: str | None) -> Iterator[None]:
    """Without a URL the app is looked for in the Ray cluster at `address`."""
    if url is not None:
        yield
        return
    from . import ray_adapter  # noqa: PLC0415 - Ray takes half a second to import, and a URL does without

    ray_adapter.connect(address)
    try:
        yield
    finally:
        ray_adapter.disconnect()


@contextlib.asynccontextmanager
async def _running(app: App, url: str | None, token_file: str | None) -> AsyncIterator[Cluster]:
    async with connect(url or app.name, token_file=token_file) as cluster:
        if cluster.app_name != app.name:
            raise ValueError(f"{url} is the app {cluster.app_name!r}, not {app.name!r}")
        yield cluster


async def _carry_out(method: str, letters: list[Letter], app: App, url: str | None, token_file: str | None) -> None:
    """One after the other: their commands run in the order in which they died."""
    done, refused = 0, ""
    async with _running(app, url, token_file) as cluster:
        for letter in letters:
            try:
                await _ask(cluster, method, letter)
                done += 1
            except InvalidCommand as error:  # somebody else was faster, or the app has no such command any more
                refused = refused or str(error)
            except OutcomeUnknown:
                raise _Stopped(
                    f"{done} of {len(letters)} were {DONE[method]}; of {_name(letter)} it is not known: if it is gone "
                    "from `atoll dead-letters list`, it was"
                ) from None
            except AtollError as error:
                if not done:
                    raise
                raise _Stopped(f"{done} of {len(letters)} were {DONE[method]}, then: {error}") from None
    if refused:
        fail(refused if len(letters) == 1 else f"{done} of {len(letters)} were {DONE[method]}; refused: {refused}")


class _Stopped(AtollError):
    """Some were done, and then it could not go on."""


async def _ask(cluster: Cluster, method: str, letter: Letter) -> None:
    kind, id, number = letter
    await cluster.client.call(Request(kind, id, method, msgspec.msgpack.encode({"number": number})))
