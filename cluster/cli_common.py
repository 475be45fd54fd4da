"""What the commands share: how options are spelt, how tables look, how anything that goes wrong becomes one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ..actors.errors import AtollError
from .loading import AppImportError

console = Console(highlight=False)
errors = Console(stderr=True)

INTERRUPTED = "interrupted: what had been begun was undone"
TABLE_WIDTH = 400
"""A table takes what it needs and is never cut: addresses are there to be copied."""

AppPath = Annotated[str, typer.Argument(help="module:app, as uvicorn takes it", metavar="APP")]
AppName = Annotated[str, typer.Argument(help="the app's name, as in atoll.App(name)", metavar="NAME")]
AppDir = Annotated[str, typer.Option("--app-dir", help="folder in which the app's module lies")]
Address = Annotated[
    str | None, typer.Option("--address", help="of the Ray cluster; default RAY_ADDRESS, else this machine")
]
StoreUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        help="store URL, once for each of an app's databases, in their order; "
        "default ATOLL_STORE (with ; between several), else the app's own, else ./atoll-data/NAME",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def fail(message: str, code: int = 1) -> NoReturn:
    line = " ".join(message.split())  # one line, whatever an app's own error says
    errors.print(f"atoll: {line}", style="red", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(code)


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Whatever can be expected to go wrong becomes one line and an exit code."""
    try:
        yield
    except AppImportError as error:
        fail(str(error), 2)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(141) from None
    except (AtollError, OSError) as error:
        fail(str(error))
    except ValueError as error:
        fail(str(error), 2)
    except KeyboardInterrupt as error:
        fail(str(error) or INTERRUPTED, 130)
    except SystemExit as error:  # SIGTERM
        fail(error.code if isinstance(error.code, str) else INTERRUPTED, 143)


def show(table: Table) -> None:
    Console(width=TABLE_WIDTH).print(table)
