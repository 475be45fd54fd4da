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
from .stores import named_in

if TYPE_CHECKING:
    from types import ModuleType

store = typer.Typer(help="Upkeep of a store as a whole.", no_args_is_help=True)

Urls = Annotated[
    list[str] | None,
    typer.Option("--store", help="store URL with the owner's role, once for each database; default ATOLL_STORE"),
]


@store.command()
def migrate(urls: Urls = None) -> None:
    """Make the tables, or bring them up to date with this version of atoll. Stop the app before, and back it up."""
    with told_in_one_line():
        for url in _named(urls):
            for file in asyncio.run(_owners_work(url).migrate(url)):
                console.print(f"applied {file}")
            console.print(f"{shown(url)} is up to date", style="green", soft_wrap=True)


@store.command()
def accept(
    urls: Urls = None,
    synchronous: Annotated[
        bool,
        typer.Option("--synchronous", help="its promotions lose nothing: accept later ones, too"),
    ] = False,
) -> None:
    """Go on after a standby was promoted, or a backup restored, with what is there. First end every host of the app."""
    with told_in_one_line():
        for url in _named(urls):
            life = asyncio.run(_owners_work(url).accept(url, synchronous=synchronous))
            console.print(f"{shown(url)} goes on, on timeline {life.timeline}", style="green", soft_wrap=True)


def _named(urls: list[str] | None) -> list[str]:
    named = urls or named_in(os.environ) or [""]
    for url in named:
        if not is_postgres(url):
            raise ValueError(f"only a PostgreSQL store has tables to look after, not {url!r}: --store postgresql://...")
    return named


def _owners_work(url: str) -> ModuleType:
    open_store(url)  # says how to install the driver where it is missing
    from ..persistence import postgres_migrate  # noqa: PLC0415 - needs the driver

    return postgres_migrate
