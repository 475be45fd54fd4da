"""Measure Atoll on this machine, and print each figure beside its bound.

    python bench/run.py [--quick | --long] [--only TOPIC] [--json FILE]

Ends with status 1 when a must ("at least", "below") was missed; an aim that was missed is only marked. Trust ratios
before absolute numbers, and neither while something else runs: other work on the same cores halves everything.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from figures import Figure
from measures import TOPICS, measured
from rich.console import Console
from rich.table import Table
from topic import Pace


def show(figures: list[Figure], console: Console) -> None:
    table = Table(title="Atoll, measured here")
    for column in ("figure", "value", "unit", "bound", "ratio"):
        table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
    for figure in figures:
        colour = "" if figure.kind is None else "green" if figure.kept else "red" if figure.failed else "yellow"
        value = f"{figure.value:,g}" if figure.value < 1000 else f"{figure.value:,.0f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:g} of {figure.reference}"
        table.add_row(figure.name, f"[{colour}]{value}[/]" if colour else value, figure.unit, figure.bound, ratio)
    console.print(table)


async def measure_all(topics: list[str], pace: Pace, console: Console) -> list[Figure]:
    figures: list[Figure] = []
    gc.freeze()  # what was imported lives for ever: keep it out of the collector's rounds, as a host does
    with console.status("measuring") as status:
        for topic in topics:
            figures += await measured(topic, pace, lambda what: status.update(f"measuring: {what}"))
    return figures


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two seconds a figure, three kills or moves.")] = False,
    long: Annotated[
        bool, typer.Option("--long", help="Five minutes of durable asks: checkpoints are paid for.")
    ] = False,
    only: Annotated[str | None, typer.Option(help=f"One topic: {', '.join(TOPICS)}.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure Atoll on this machine, and print each figure beside its bound."""
    if only is not None and only not in TOPICS:
        raise typer.BadParameter(f"{only!r} is no topic: {', '.join(TOPICS)}", param_hint="--only")
    console = Console()
    if not console.is_terminal:
        console.width = 140  # in a file or a log no figure is to be wrapped
    logging.getLogger("atoll").setLevel(logging.ERROR)  # that killed hosts are condemned is no news here
    topics = list(TOPICS) if only is None else [only]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure_all(topics, Pace(quick=quick, long=long), console))
    show(figures, console)
    if json_file is not None:
        json_file.write_text(json.dumps([figure.record() for figure in figures], indent=2) + "\n")
    failed = [figure.name for figure in figures if figure.failed]
    if failed:
        console.print(f"missed: {', '.join(failed)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
