"""`atoll store migrate|accept`: what the role that owns a PostgreSQL store's tables does. SQLite's files need none of
it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from ..persistence.open import open_store
from ..persistence.urls import is_postgres, shown
from .cli_common import console, told_in_one_line

if TYPE_CHECKING:
    from types import ModuleType

store = typer.Typer(help="Upkeep of a store as a whole.", no_args_is_help=True)

Url = Annotated[str | None, typer.Option("--store", help="store URL with the owner's role; default ATOLL_STORE")]


@store.command()
def migrate(url: Url = None) -> None:
    """Make the tables, or bring them up to date with this version of atoll. Stop the app before, and back it up."""
    with told_in_one_line():
        named = _named(url)
        applied = asyncio.run(_owners_work(named).migrate(named))
    for file in applied:
        console.print(f"applied {file}")
    console.print(f"{shown(named)} is up to date", style="green", soft_wrap=True)


@store.command()
def accept(
    url: Url = None,
    synchronous: Annotated[
        bool,
        typer.Option("--synchronous", help="its promotions lose nothing: accept later ones, too"),
    ] = False,
) -> None:
    """Go on after a standby was promoted, or a backup restored, with what is there. First end every host of the app."""
    with told_in_one_line():
        named = _named(url)
        life = asyncio.run(_owners_work(named).accept(named, synchronous=synchronous))
    console.print(f"{shown(named)} goes on, on timeline {life.timeline}", style="green", soft_wrap=True)


def _named(url: str | None) -> str:
    named = url or os.environ.get("ATOLL_STORE") or ""
    if not is_postgres(named):
        raise ValueError(f"only a PostgreSQL store has tables to look after, not {named!r}: --store postgresql://...")
    return named


def _owners_work(url: str) -> ModuleType:
    open_store(url)  # says how to install the driver where it is missing
    from ..persistence import postgres_migrate  # noqa: PLC0415 - needs the driver

    return postgres_migrate
