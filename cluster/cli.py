"""The command line. Thin: it checks, asks and prints; what happens is elsewhere.

Exit codes: 0 done; 1 it could not be done, or (`status`) not all is well, and the line says what to do; 2 the command
line, a setting or the app is wrong; 130 or 143 interrupted (SIGINT, SIGTERM).
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from ..actors.settings import Settings
from .cli_common import Address, AppDir, AppName, AppPath, AsJson, console, fail, show, told_in_one_line
from .cli_dead_letters import dead_letters
from .cli_reading import journal, log
from .loading import load_app
from .starting import look, start_app, stop_app

app = typer.Typer(
    help="Atoll: durable entities on Ray.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(log, name="log")
app.add_typer(journal, name="journal")
app.add_typer(dead_letters, name="dead-letters")


@app.callback(invoke_without_command=True)
def root(
    asks_version: Annotated[bool, typer.Option("--version", help="print the version", is_eager=True)] = False,
) -> None:
    if asks_version:
        console.print(f"atoll {version('atoll')}")
        raise typer.Exit


@app.command()
def start(
    app_path: AppPath,
    app_dir: AppDir = ".",
    store: Annotated[str | None, typer.Option(help="store URL; default ATOLL_STORE, else ./atoll-data/NAME")] = None,
    address: Address = None,
    port: Annotated[
        int, typer.Option(help="of the first host, the others take the next ones; 0: any", min=0, max=65_535)
    ] = 0,
    ship: Annotated[bool, typer.Option("--ship", help="upload --app-dir to the nodes")] = False,
    timeout: Annotated[float, typer.Option(help="seconds until every shard must be served", min=1.0)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Start an app on a Ray cluster. Returns when every shard is served, or undoes itself."""
    with told_in_one_line():
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
    if as_json:
        console.print_json(json.dumps(started))
        return
    console.print(f"{started['app']} is up: {started['shards']} shards on {len(started['hosts'])} hosts", style="green")
    console.print(f"  from inside Ray   atoll.connect({started['app']!r})")
    console.print(f"  from anywhere     atoll.connect({started['url']!r})", soft_wrap=True)
    console.print(f"  token file        {started['token_file']}", soft_wrap=True)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="the app's name; without it: which apps run")] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show an app's hosts, leases and shards, or without a name the apps that run."""
    with told_in_one_line():
        found = look(name, address)
    if as_json:
        console.print_json(json.dumps(found))
    elif name is None:
        console.print("\n".join(found["apps"]) or "no app runs in this Ray cluster")
    else:
        _show_status(found)
    if name is not None:
        _fail_unless_well(found)


def _show_status(found: dict[str, Any]) -> None:
    console.print(f"{found['app']}: {found['served']} of {found['shards']} shards served")
    table = Table(box=SIMPLE)
    for column in ("host", "address", "state", "shards", "entities", "lease", "clients", "pid", "node"):
        table.add_column(column, no_wrap=True)
    for host in found["hosts"]:
        table.add_row(
            *(str(host[key]) for key in ("incarnation", "address", "state", "shards", "entities")),
            "valid" if host["lease_valid"] else "lapsed",
            str(host["connections"]),
            str(host.get("pid", "?")),
            host["node"][:12],
        )
    show(table)
    console.print(f"connect     {found['url']}", soft_wrap=True)
    console.print(f"token file  {found['token_file']}", soft_wrap=True)


def _fail_unless_well(found: dict[str, Any]) -> None:
    if found["problem"]:
        fail(found["problem"])
    if not found["coordinator"]:
        fail("the coordinator does not answer: Ray restarts it; what is placed goes on meanwhile")
    if found["served"] != found["shards"]:
        fail(f"{found['shards'] - found['served']} of {found['shards']} shards are not served right now: look again")


@app.command()
def stop(name: AppName, address: Address = None) -> None:
    """Stop an app: its hosts give their shards back and end; the store stays."""
    with told_in_one_line():
        released = stop_app(name, address)
    console.print(
        f"{name} is stopped" + ("" if released else " (some shards were not given back: the next start recovers them)")
    )


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
