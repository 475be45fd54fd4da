"""The command line. Thin: it checks, asks and prints; what happens is elsewhere.

Exit codes: 0 done; 1 it could not be done, or (`status`) not all is well, and the line says what to do; 2 the command
line, a setting or the app is wrong; 130 or 143 interrupted (SIGINT, SIGTERM), except where that is the ordinary end
(`--watch`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from ..actors.settings import Settings
from .cli_common import Address, AppDir, AppName, AppPath, AsJson, StoreUrls, console, errors, show, told_in_one_line
from .cli_dead_letters import dead_letters
from .cli_pins import pin, unpin
from .cli_reading import journal, log
from .cli_status import shards, status
from .cli_store import store as store_commands
from .cli_upkeep import upkeep
from .loading import load_app
from .signals import end_on_sigterm
from .starting import in_ray, start_app, stop_app

app = typer.Typer(
    help="Atoll: durable entities on Ray.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command()(status)
app.command()(shards)
app.command()(pin)
app.command()(unpin)
app.add_typer(log, name="log")
app.add_typer(journal, name="journal")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(store_commands, name="store")
store_commands.add_typer(upkeep)


@app.callback(invoke_without_command=True)
def root(
    asks_version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
) -> None:
    if asks_version:
        console.print(f"atoll {version('atoll')}")
        raise typer.Exit


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """A line that is written over, where there is a terminal."""
    with errors.status(what) as line:
        yield lambda lacks: line.update(f"{what}: {lacks}")


@app.command()
def start(
    app_path: AppPath,
    app_dir: AppDir = ".",
    store: StoreUrls = None,
    address: Address = None,
    port: Annotated[
        int, typer.Option(help="of the first host, the others take the next ones; 0: any", min=0, max=65_535)
    ] = 0,
    ship: Annotated[bool, typer.Option("--ship", help="upload --app-dir to the nodes")] = False,
    timeout: Annotated[float, typer.Option(help="seconds until every shard must be served", min=1.0)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Start an app on a Ray cluster, or replace the version of it that runs, host by host.

    Returns when every shard is served (by that version), or undoes itself.
    """
    with told_in_one_line(), _progress(f"starting {app_path}") as tell:
        started = start_app(
            app_path,
            app_dir=app_dir,
            store=store or (),
            address=address,
            port=port,
            ship=ship,
            timeout_s=timeout,
            environment=os.environ,
            tell=tell,
        )
    if as_json:
        console.print_json(json.dumps(started))
        return
    what = f"{started['app']} {started['version']}".strip()
    console.print(f"{what} is up: {started['shards']} shards on {len(started['hosts'])} hosts", style="green")
    console.print(f"  from inside Ray   atoll.connect({started['app']!r})")
    console.print(f"  from anywhere     atoll.connect({started['url']!r})", soft_wrap=True)
    console.print(f"  token file        {started['token_file']}", soft_wrap=True)


@app.command()
def drain(
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="the beginning of its Ray ID, its hostname or IP address")
    ],
    undo: Annotated[bool, typer.Option("--undo", help="let it have hosts and shards again")] = False,
    timeout: Annotated[float, typer.Option(help="seconds until it must be empty", min=1.0)] = 60.0,
    address: Address = None,
) -> None:
    """Move all shards away from a node, of every app, while they are served. Returns when it may go."""
    from . import draining  # noqa: PLC0415 - Ray takes half a second to import: only when it is asked

    with told_in_one_line(), _progress("undoing a drain" if undo else "draining") as tell, in_ray(address):
        end_on_sigterm()
        found = (draining.undo if undo else draining.drain)(node, timeout, tell)
    may = "may have shards again" if undo else "serves nothing any more, and gets nothing until --undo"
    console.print(f"node {found.id[:12]} ({found.hostname}) {may}")


@app.command()
def stop(name: AppName, address: Address = None) -> None:
    """Stop an app: its hosts give their shards back and end; the store stays."""
    with told_in_one_line():
        stopped = stop_app(name, address)
    console.print(
        f"{name} is stopped"
        + ("" if stopped.released else " (some shards were not given back: the next start recovers them)")
    )
    left = [f"{count} {what}" for what, count in (stopped.pending or {}).items() if count]
    if left:
        console.print(f"  left in its store  {', '.join(left).replace('_', ' ')}")


@app.command()
def config(app_path: Annotated[str | None, typer.Argument(metavar="[APP]")] = None, app_dir: AppDir = ".") -> None:
    """Print every setting, its value and where that came from."""
    with told_in_one_line():
        asked = {} if app_path is None else load_app(app_path, app_dir).settings_asked
        settings, sources = Settings.load(asked, os.environ)
    table = Table(box=SIMPLE)
    for column in ("setting", "value", "source"):
        table.add_column(column, no_wrap=True)
    for field in settings.__struct_fields__:
        table.add_row(field, str(getattr(settings, field)), sources[field])
    show(table)


def main() -> None:
    app()
