"""The command line: `atoll start|status|stop|config`. Thin: it checks, asks, prints; what happens is elsewhere.

Exit codes: 0 done; 1 it could not be done (the line says what to do); 2 the command line or the app is wrong.
"""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ..actors.errors import AtollError
from ..actors.settings import Settings
from .loading import AppImportError, load_app
from .starting import StartRefused, start_app, stop_app

app = typer.Typer(
    help="Atoll: durable entities on Ray.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console()
errors = Console(stderr=True)

AppPath = Annotated[str, typer.Argument(help="module:app, as uvicorn takes it", metavar="APP")]
AppName = Annotated[str, typer.Argument(help="the app's name, as in atoll.App(name)", metavar="NAME")]
AppDir = Annotated[str, typer.Option("--app-dir", help="folder in which the app's module lies")]
Address = Annotated[
    str | None, typer.Option("--address", help="of the Ray cluster; default RAY_ADDRESS, else this machine")
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def fail(message: str, code: int = 1) -> NoReturn:
    errors.print(f"atoll: {message}", style="red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(code)


@app.command()
def start(
    app_path: AppPath,
    app_dir: AppDir = ".",
    store: Annotated[str | None, typer.Option(help="store URL; default ATOLL_STORE, else ./atoll-data/NAME")] = None,
    address: Address = None,
    port: Annotated[int, typer.Option(help="of the first host, the others take the next ones; 0: any")] = 0,
    ship: Annotated[bool, typer.Option("--ship", help="upload --app-dir to the nodes")] = False,
    timeout: Annotated[float, typer.Option(help="seconds until every shard must be served")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Start an app on a Ray cluster. Returns when every shard is served, or undoes itself."""
    try:
        started = start_app(
            app_path,
            app_dir=app_dir,
            store=store,
            address=address,
            port=port,
            ship=ship,
            timeout_s=timeout,
            environment=os.environ,
        )
    except AppImportError as error:
        fail(str(error), 2)
    except (AtollError, StartRefused, ValueError, OSError) as error:
        fail(str(error))
    if as_json:
        console.print_json(json.dumps(started))
    else:
        console.print(
            f"{started['app']} is up: {started['shards']} shards on {len(started['hosts'])} hosts", style="green"
        )
        console.print(f"  from inside Ray   atoll.connect({started['app']!r})", highlight=False)
        console.print(f"  from anywhere     atoll.connect({started['url']!r})", highlight=False, soft_wrap=True)
        console.print(f"  token file        {started['token_file']}", highlight=False, soft_wrap=True)


@app.command()
def status(name: AppName, address: Address = None, as_json: AsJson = False) -> None:
    """Show an app's hosts, leases and shards."""
    from . import ray_status  # noqa: PLC0415 - imports Ray, which takes a second

    try:
        found = ray_status.status(name, address)
    except AtollError as error:
        fail(str(error))
    if as_json:
        console.print_json(json.dumps(found))
        return
    table = Table(title=f"{name}: {found['served']} of {found['shards']} shards served")
    for column in ("host", "address", "node", "state", "shards", "entities", "lease", "clients"):
        table.add_column(column)
    for host in found["hosts"]:
        table.add_row(
            *(str(host[key]) for key in ("incarnation", "address", "node", "state", "shards", "entities")),
            "valid" if host["lease_valid"] else "lapsed",
            str(host["connections"]),
        )
    console.print(table)
    console.print(f"{found['url']}   token file {found['token_file']}", highlight=False, soft_wrap=True)
    if found["problem"]:
        fail(found["problem"])


@app.command()
def stop(name: AppName, address: Address = None) -> None:
    """Stop an app: its hosts give their shards back and end; the store stays."""
    try:
        released = stop_app(name, address)
    except AtollError as error:
        fail(str(error))
    console.print(
        f"{name} is stopped" + ("" if released else " (some shards were not released: the next start recovers)")
    )


@app.command()
def config(app_path: Annotated[str | None, typer.Argument(metavar="[APP]")] = None, app_dir: AppDir = ".") -> None:
    """Print every setting, its value and where that came from."""
    asked: Any = {}
    try:
        if app_path is not None:
            asked = load_app(app_path, app_dir).settings_asked
        settings, sources = Settings.load(asked, os.environ)
    except (AppImportError, ValueError) as error:
        fail(str(error), 2)
    table = Table()
    for column in ("setting", "value", "source"):
        table.add_column(column)
    for field in settings.__struct_fields__:
        table.add_row(field, str(getattr(settings, field)), sources[field])
    console.print(table)


def main() -> None:
    app()
